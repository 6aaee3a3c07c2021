"""PixArt-alpha and Sigma: a transformer that reads T5's tokens; alpha at 1024 pixels also the picture's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families.base import T5_TOKENIZER, VAES, Family, Parts, latent_size
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.parts import TextPart
from gen.models.bridge.vae import pixels_per_latent
from samplers.denoiser import Condition


class PixArt(BridgedNetwork):
    def __init__(self, network: Any, factor: int):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))
        self.factor = factor
        sized = setting(network, "use_additional_conditions")
        self.sized = setting(network, "sample_size") == 128 if sized is None else bool(sized)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.sized:
            height, width = (side * self.factor for side in x.shape[2:])
            added["resolution"] = torch.tensor([height, width], dtype=x.dtype, device=x.device).expand(len(x), 2)
            added["aspect_ratio"] = torch.tensor([height / width], dtype=x.dtype, device=x.device).expand(len(x), 1)
        assert condition.mask is not None
        return self.network(
            x,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask.to(x.dtype),
            timestep=time,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


def network(parts: Parts, index: Mapping[str, Any]) -> PixArt:
    return PixArt(parts["transformer"], pixels_per_latent(parts["vae"].config))


def reader(length: int) -> Any:
    def build(parts: Parts, index: Mapping[str, Any]) -> TextPart:
        return TextPart("t5", parts["tokenizer"], parts["text_encoder"], length)

    return build


ALPHA = Family(
    name="PixArt-alpha",
    backbone="transformer",
    classes={
        "transformer": ("PixArtTransformer2DModel", "Transformer2DModel"),
        "vae": VAES,
        "text_encoder": ("T5EncoderModel",),
        "tokenizer": T5_TOKENIZER,
    },
    clock="index",
    network=network,
    reader=reader(120),
    defaults=lambda backbone: {"num_inference_steps": 20, "guidance_scale": 4.5},
    size=latent_size,
    native="diffusers-pixart",
    bins=True,
)
SIGMA = replace(ALPHA, name="PixArt-Sigma", reader=reader(300))
