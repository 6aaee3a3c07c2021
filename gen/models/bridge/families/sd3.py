"""Stable Diffusion 3: a transformer that reads two CLIP encoders and T5 in one sequence, and a pooled vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.models.bridge.families.base import CLIP_TOKENIZER, T5_TOKENIZER, VAES, Family, Parts, latent_size
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import ClipReader, PromptReader, Sentence, whole_mask
from gen.models.prompt_reading import USUAL, Reading
from gen.nn.control import added_in_sequence
from samplers.denoiser import Condition

T5_TOKENS = 256


class SD3(BridgedNetwork):
    def __init__(self, network: Any):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))

    controlled_by: tuple[str, ...] = ("SD3ControlNetModel",)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        total, _ = added_in_sequence(self.controls, x, time, condition)
        return self.network(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=condition.tokens,
            pooled_projections=condition.pooled,
            block_controlnet_hidden_states=None if total is None else total[0],
            return_dict=False,
        )[0]


class SD3Reader(PromptReader):
    """CLIP's tokens, padded to T5's width, then T5's (zeros where the pipeline has no T5)."""

    takes = ("clip_skip", "prompt_2", "prompt_3", "max_sequence_length")

    def __init__(self, clip: ClipReader, clip_2: ClipReader, t5: Sentence | None, dim: int):
        super().__init__()
        self.clip, self.clip_2, self.t5, self.dim = clip, clip_2, t5, dim

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        skip = None if negative else reading.clip_skip
        prompt_2, prompt_3 = (prompt if text is None else text for text in (reading.prompt_2, reading.prompt_3))
        length = reading.max_sequence_length
        first, pooled = self.clip.read(prompt, chunks=1, skip=skip)
        second, pooled_2 = self.clip_2.read(prompt_2, chunks=1, skip=skip)
        clip = torch.cat([first, second], dim=-1)
        if self.t5 is None:
            sentence = clip.new_zeros(1, length or T5_TOKENS, self.dim)
        else:
            sentence = self.t5.read(prompt_3, length=length)[0]
        clip = F.pad(clip, (0, sentence.shape[-1] - clip.shape[-1]))
        tokens = torch.cat([clip, sentence.to(clip)], dim=1)
        return Condition(tokens=tokens, mask=whole_mask(tokens), pooled=torch.cat([pooled, pooled_2], dim=-1))


def network(parts: Parts, index: Mapping[str, Any]) -> SD3:
    return SD3(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> SD3Reader:
    clip, clip_2 = (ClipReader(parts[f"tokenizer{n}"], parts[f"text_encoder{n}"], penultimate=True) for n in ("", "_2"))
    t5 = None
    if parts["text_encoder_3"] is not None:
        t5 = Sentence(parts["tokenizer_3"], parts["text_encoder_3"], T5_TOKENS, masked=False)
    return SD3Reader(clip, clip_2, t5, setting(parts["transformer"], "joint_attention_dim"))


FAMILY = Family(
    name="Stable Diffusion 3",
    backbone="transformer",
    classes={
        "transformer": ("SD3Transformer2DModel",),
        "vae": VAES,
        "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer": CLIP_TOKENIZER,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": CLIP_TOKENIZER,
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer_3": T5_TOKENIZER,
    },
    optional=("text_encoder_3", "tokenizer_3"),
    clock="1000t",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 28, "guidance_scale": 7.0},
    size=latent_size,
    native="diffusers-sd3",
    native_usual=False,
)
