"""Chroma: Flux's transformer without pooled text and guidance scale, whose text padding is masked but for one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families.base import T5_TOKENIZER, VAES, Family, Parts
from gen.models.bridge.families.flux import packed, positions, unpacked
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import PromptReader, Sentence
from gen.models.bridge.remembered import Remembering, by_shape
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

TOKENS = 512


class Chroma(BridgedNetwork):
    """Latents are packed 2 x 2 into tokens of 4 C channels."""

    remembers: Mapping[str, Remembering] = {"time_text_embed.guidance_proj": by_shape}  # of a scale 0

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels") // 4, patch=2))

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None and condition.mask is not None
        tokens = packed(x)
        seen = torch.cat([condition.mask, condition.mask.new_ones(tokens.shape[:2])], dim=1)
        out = self.network(
            hidden_states=tokens,
            timestep=time.to(x.dtype),
            encoder_hidden_states=condition.tokens,
            txt_ids=x.new_zeros(condition.tokens.shape[1], 3),
            img_ids=positions(x),
            attention_mask=seen.to(x.dtype),  # the pipeline adds it to scores as the numbers 1 and 0
            return_dict=False,
        )[0]
        return unpacked(out, x)


class ChromaReader(PromptReader):
    """T5's tokens; of the padding, the network sees the first token."""

    takes = ("max_sequence_length",)

    def __init__(self, t5: Sentence):
        super().__init__()
        self.t5 = t5

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        tokens, mask = self.t5.read(prompt, length=reading.max_sequence_length)
        places = torch.arange(mask.shape[1], device=mask.device)
        return Condition(tokens=tokens, mask=places <= mask.sum(1, keepdim=True))


def network(parts: Parts, index: Mapping[str, Any]) -> Chroma:
    return Chroma(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> ChromaReader:
    return ChromaReader(Sentence(parts["tokenizer"], parts["text_encoder"], TOKENS, masked=True))


FAMILY = Family(
    name="Chroma",
    backbone="transformer",
    classes={
        "transformer": ("ChromaTransformer2DModel",),
        "vae": VAES,
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": T5_TOKENIZER,
    },
    clock="t",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 35, "guidance_scale": 5.0},
    size=lambda backbone, factor: 128 * factor,
    own_sigmas=True,
)
