"""Rewards of the pixels alone. Pictures are (B, 3, H, W), nominally in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import ImageColor
from torch import Tensor

from gen.io.validators import check_float
from samplers.constants import constant

LUMA = (0.299, 0.587, 0.114)
GREY = 0.03  # chroma below which a colour has no hue


def mean_brightness(images: Tensor) -> Tensor:
    """(B,), by the weights of BT.601."""
    return (images.mean((2, 3)) * constant(LUMA, images.device, images.dtype)).sum(1)


def luma_and_chroma(rgb: Tensor) -> Tensor:
    """(..., 3) as Y, Cb and Cr of BT.601, the last two in [-0.5, 0.5]."""
    y = (rgb * constant(LUMA, rgb.device, rgb.dtype)).sum(-1)
    return torch.stack([y, (rgb[..., 2] - y) / 1.772, (rgb[..., 0] - y) / 1.402], -1)


def named_colour(colour: object) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of a name or #rrggbb; ValueError for another."""
    try:
        red, green, blue = ImageColor.getrgb(str(colour))[:3]
    except ValueError:
        raise ValueError(f"Unknown colour {colour!r}: give a name such as red or teal, or #rrggbb.") from None
    return red / 255, green / 255, blue / 255


def mean_of_middle(images: Tensor, width: float) -> Tensor:
    """(B, 3): the mean under a Gaussian window in the middle, `width` of a side wide."""
    rows, columns = (torch.linspace(-0.5, 0.5, n, device=images.device, dtype=images.dtype) for n in images.shape[2:])
    window = torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2) / width**2)
    return (images * (window / window.sum())).sum((2, 3))


@dataclass(frozen=True)
class BrightnessReward:
    """The mean brightness (BT.601), in [0, 1]."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return mean_brightness(images)


@dataclass(frozen=True)
class ColourReward:
    """How far the mean chroma (BT.601) of the picture's middle goes in the direction of a colour's; negative for the opposite.

    colour: a name or #rrggbb that has a hue. width: of the Gaussian window over the middle, in shares of a side.
    """

    colour: str
    width: float = 0.25

    def __post_init__(self) -> None:
        check_float("width", self.width, 0.01, 100)
        if self.chroma().norm() < GREY:
            raise ValueError(f"colour is {self.colour!r}, which has no hue; give another, or take the reward 'brightness'.")

    def chroma(self) -> Tensor:
        """Cb and Cr of the colour, (2,) float64."""
        return luma_and_chroma(torch.tensor(named_colour(self.colour), dtype=torch.float64))[1:]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        chroma = self.chroma()
        direction = constant(tuple((chroma / chroma.norm()).tolist()), images.device, images.dtype)
        return (luma_and_chroma(mean_of_middle(images, self.width))[:, 1:] * direction).sum(1)
