"""SDXL: a U-Net that reads two CLIP encoders, a pooled vector and the picture's size. Its refiner reads the second encoder, and
how well the picture is to look (`gen.tasks.refiner`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.families.base import CLIP_TOKENIZER, VAES, Family, Parts, latent_size
from gen.models.bridge.families.stable_diffusion import UNet, defaults
from gen.models.bridge.network import setting
from gen.models.bridge.prompts import ClipReader, PromptReader, whole_mask
from gen.models.bridge.vae import pixels_per_latent
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

SCORE, NEGATIVE_SCORE = 6.0, 2.5  # of how well pictures look, and of those that are not wanted (diffusers' defaults)


class SDXLUNet(UNet):
    """size ids are (height, width, top, left, height, width): the original, its crop and the target (arXiv 2307.01952,
    section 2.2). They are those of the picture being made, uncropped; `Condition.extra["size_ids"]` (B, 6) says otherwise."""

    reads_sizes = True
    ids = 6

    def __init__(self, network: Any, chunk: int, factor: int, pooled: int):
        super().__init__(network, chunk)
        self.factor = factor
        expected = network.add_embedding.linear_1.in_features
        if added_numbers(network, self.ids, pooled) != expected:
            raise ValueError(f"its U-Net reads {expected} added numbers, not {self.ids} size ids and {pooled} pooled ones")

    def added(self, x: Tensor, condition: Condition) -> dict[str, Tensor | None]:
        return {"text_embeds": condition.pooled, "time_ids": condition.extra["size_ids"]}

    def place(self, condition: Condition, x: Tensor) -> Condition:
        if "size_ids" in condition.extra:
            return condition
        height, width = (side * self.factor for side in x.shape[2:])
        ids = torch.tensor([height, width, 0, 0, height, width], dtype=x.dtype, device=x.device).expand(len(x), 6)
        return replace(condition, extra={**condition.extra, "size_ids": ids})


class SDXLRefiner(SDXLUNet):
    """ids are (height, width, top, left, score): how well pictures look, of `Condition.extra["score"]` (B, 1), stands in the
    place of the target."""

    reads_sizes = False
    ids = 5

    def place(self, condition: Condition, x: Tensor) -> Condition:
        height, width = (side * self.factor for side in x.shape[2:])
        ids = torch.tensor([height, width, 0, 0], dtype=x.dtype, device=x.device).expand(len(x), 4)
        score = condition.extra.get("score")
        score = ids.new_full((len(x), 1), SCORE) if score is None else score.to(ids)
        return replace(condition, extra={**condition.extra, "size_ids": torch.cat([ids, score], dim=1)})


def added_numbers(network: nn.Module, ids: int, pooled: int) -> int:
    """How many numbers a U-Net reads beside its time: each id as sines and cosines, and the pooled vector."""
    return ids * setting(network, "addition_time_embed_dim", 0) + pooled


class SDXLReader(PromptReader):
    """Tokens of both encoders side by side, pooled by the second.

    zeros: an empty prompt gives zeros. scored: with the scores that the refiner reads.
    """

    breaks = True
    takes = ("clip_skip", "prompt_2")

    def __init__(self, clip: ClipReader | None, clip_2: ClipReader, zeros: bool, scored: bool = False):
        super().__init__()
        self.clip, self.clip_2, self.zeros, self.scored = clip, clip_2, zeros, scored

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        skip = None if negative else reading.clip_skip
        second = prompt if reading.prompt_2 is None else reading.prompt_2
        tokens, pooled = self.clip_2.read(second, skip=skip)
        if self.clip is not None:
            tokens = torch.cat([self.clip.read(prompt, skip=skip)[0], tokens], dim=-1)
        if self.zeros and not prompt.strip() and not second.strip():
            tokens, pooled = torch.zeros_like(tokens), torch.zeros_like(pooled)
        extra = {"score": tokens.new_full((1, 1), NEGATIVE_SCORE if negative else SCORE)} if self.scored else {}
        return Condition(tokens=tokens, mask=whole_mask(tokens), pooled=pooled, extra=extra)


def is_scored(parts: Parts) -> bool:
    """Does the U-Net read a score, as the refiner's does?"""
    unet, pooled = parts["unet"], parts["text_encoder_2"].config.projection_dim
    return added_numbers(unet, SDXLRefiner.ids, pooled) == unet.add_embedding.linear_1.in_features


def network(parts: Parts, index: Mapping[str, Any]) -> SDXLUNet:
    factor = pixels_per_latent(parts["vae"].config)
    config = parts["text_encoder_2"].config
    kind = SDXLRefiner if is_scored(parts) else SDXLUNet
    return kind(parts["unet"], config.max_position_embeddings, factor, config.projection_dim)


def reader(parts: Parts, index: Mapping[str, Any]) -> SDXLReader:
    first = None
    if parts["text_encoder"] is not None:
        first = ClipReader(parts["tokenizer"], parts["text_encoder"], penultimate=True)
    second = ClipReader(parts["tokenizer_2"], parts["text_encoder_2"], penultimate=True)
    return SDXLReader(first, second, bool(index.get("force_zeros_for_empty_prompt", True)), is_scored(parts))


FAMILY = Family(
    name="SDXL",
    backbone="unet",
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": VAES,
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZER,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": CLIP_TOKENIZER,
    },
    optional=("text_encoder", "tokenizer"),
    clock="index",
    network=network,
    reader=reader,
    defaults=defaults(5.0),
    size=latent_size,
    bins=False,
)
REFINER = replace(FAMILY, name="SDXL refiner")
