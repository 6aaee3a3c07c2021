"""Sana: a linear-attention transformer that reads Gemma's tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families.base import Family, Parts, latent_size
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import PromptReader, Sentence
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

TOKENS = 300
SPRINT_GUIDANCE = 4.5


class Sana(BridgedNetwork):
    def __init__(self, network: Any):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 1)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))
        self.time_scale = setting(network, "timestep_scale", 1.0)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.mask is not None
        return self.network(
            x,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask.to(x.dtype),
            timestep=time * self.time_scale,
            return_dict=False,
        )[0]


class SanaSprint(Sana):
    """`Condition.extra["guidance"]` (B,) is the embedded scale."""

    embeds = True

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.mask is not None
        guidance = condition.extra.get("guidance")
        if guidance is None:
            guidance = torch.full((len(x),), SPRINT_GUIDANCE, device=x.device)
        return self.network(
            x,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask.to(x.dtype),
            guidance=guidance.to(x.dtype) * setting(self.network, "guidance_embeds_scale", 0.1),
            timestep=time,
            return_dict=False,
        )[0]


class SanaReader(PromptReader):
    """Prompts follow the instruction that Sana was trained with; negative and empty ones stand alone."""

    takes = ("max_sequence_length",)

    def __init__(self, gemma: Sentence, instruction: str):
        super().__init__()
        self.gemma, self.instruction = gemma, instruction

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        alone = negative or not prompt.strip()
        tokens, mask = self.gemma.read(prompt, "" if alone else self.instruction, reading.max_sequence_length)
        return Condition(tokens=tokens, mask=mask)


def network(parts: Parts, index: Mapping[str, Any]) -> Sana:
    return Sana(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> SanaReader:
    from diffusers import SanaPipeline

    lines = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    parts["tokenizer"].padding_side = "right"
    gemma = Sentence(parts["tokenizer"], parts["text_encoder"], TOKENS, masked=True, lower=True)
    return SanaReader(gemma, "\n".join(lines))


FAMILY = Family(
    name="Sana",
    backbone="transformer",
    classes={
        "transformer": ("SanaTransformer2DModel",),
        "vae": ("AutoencoderDC",),
        "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    },
    clock="1000t",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 20, "guidance_scale": 4.5},
    size=latent_size,
)
SPRINT = replace(
    FAMILY,
    name="Sana-Sprint",
    clock="t",
    network=lambda parts, index: SanaSprint(parts["transformer"]),
    defaults=lambda backbone: {"num_inference_steps": 2, "guidance": "embedded", "guidance_scale": SPRINT_GUIDANCE},
)
