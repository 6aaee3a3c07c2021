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
from gen.nn.backbones.editing import kontext_size, references, side_by_side
from samplers.denoiser import Condition

MOST_PICTURES = 4  # beside one another; Kontext was trained with one


class Kontext(Flux):
    """Pictures to edit, if any, are further tokens (`gen.nn.backbones.editing`); without, plain Flux."""

    reads, most_pictures = "picture", MOST_PICTURES
    controlled_by = ()  # ControlNets know no tokens beside the picture's
    takes_image_prompts = False  # nor do IP-Adapters

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width, of those it was trained on, whose shape is nearest to a picture's."""
        return kontext_size(height, width)

    def tokens(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        tokens, places = super().tokens(x, condition)
        pictures = references(condition)
        corners = side_by_side([(one.shape[2] // 2, one.shape[3] // 2) for one in pictures])
        beside = [positions(one) for one in pictures]
        for grid, (row, column) in zip(beside, corners, strict=True):
            grid += grid.new_tensor([1, row, column])
        return torch.cat([tokens, *map(packed, pictures)], dim=1), torch.cat([places, *beside])


class Fill(Flux):
    """`Condition.image` (B, C + f^2, h, w): the latents of the picture with what is to be made in grey, and the mask's f x f
    pixels for every latent."""

    reads = "mask"
    controlled_by = ()
    takes_image_prompts = False

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


KONTEXT = replace(flux.FAMILY, name="FLUX Kontext", network=kontext, native_options={"pictures": MOST_PICTURES})
FILL = replace(
    flux.FAMILY,
    name="FLUX Fill",
    network=fill,
    native_options={"fills": True},
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance": "embedded", "guidance_scale": 30.0},
)
