"""FLUX Kontext and Fill: Flux's transformer with a picture to edit beside the noise, as further tokens or further channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families import flux
from gen.models.bridge.families.base import Parts
from gen.models.bridge.families.flux import Flux, packed, positions
from gen.models.bridge.network import BridgedConfig, setting
from gen.models.bridge.vae import pixels_per_latent
from samplers.denoiser import Condition

# width and height of the pictures that Kontext was trained on
SIZES = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104), (1024, 1024)),
    *((1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672)),
)


class Kontext(Flux):
    """`Condition.extra["reference"]` (B, C, h', w'): the latents of a picture to edit, of any size; without, plain Flux."""

    reads = "picture"
    controlled_by = ()  # ControlNets know no tokens beside the picture's

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, of those it was trained on, whose shape is nearest to a picture's."""
        return min(((h, w) for w, h in SIZES), key=lambda size: (abs(width / height - size[1] / size[0]), size[1]))

    def tokens(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        tokens, places = super().tokens(x, condition)
        reference = condition.extra.get("reference")
        if reference is None:
            return tokens, places
        beside = positions(reference)
        beside[:, 0] = 1
        return torch.cat([tokens, packed(reference)], dim=1), torch.cat([places, beside])


class Fill(Flux):
    """`Condition.image` (B, C + f^2, h, w): the latents of the picture with what is to be made in grey, and the mask's f x f
    pixels for every latent."""

    reads = "mask"
    controlled_by = ()

    def __init__(self, network: Any, factor: int):
        taken = setting(network, "in_channels")
        latents = setting(network, "out_channels", taken)
        super().__init__(network, BridgedConfig(channels=latents // 4, patch=2))
        if taken != (wanted := 2 * latents + 4 * factor**2):
            raise ValueError(f"its network takes {taken} channels, not {wanted}: those of noise, picture and mask")

    def tokens(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        if condition.image is None:
            raise ValueError("This model fills in what a mask opens; give it a picture as image and the mask as mask.")
        return packed(torch.cat([x, condition.image], dim=1)), positions(x)


def kontext(parts: Parts, index: Mapping[str, Any]) -> Kontext:
    return Kontext(parts["transformer"])


def fill(parts: Parts, index: Mapping[str, Any]) -> Fill:
    return Fill(parts["transformer"], pixels_per_latent(parts["vae"].config))


KONTEXT = replace(flux.FAMILY, name="FLUX Kontext", network=kontext, native=None)
FILL = replace(
    flux.FAMILY,
    name="FLUX Fill",
    network=fill,
    native=None,
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance": "embedded", "guidance_scale": 30.0},
)
