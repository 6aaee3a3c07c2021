"""Energies of the pixels alone. Pictures are (B, 3, H, W), nominally in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.io.validators import check_float
from gen.rewards.pixels import GREY, luma_and_chroma, mean_brightness, mean_of_middle, named_colour
from samplers.constants import constant
from samplers.denoiser import Condition

AROUND = 0.8  # mean brightness of drawings on white


@dataclass(frozen=True)
class Brightness:
    """The mean brightness (BT.601) is `target`, give or take `spread`."""

    target: float = 0.7
    spread: float = 0.05

    def __post_init__(self) -> None:
        check_float("target", self.target, 0, 1)
        check_float("spread", self.spread, 1e-4, 10)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        return -0.5 * ((mean_brightness(images) - self.target) / self.spread) ** 2


@dataclass(frozen=True)
class Colour:
    """The middle of the picture, under a Gaussian window `width` of a side wide, has this colour, give or take `spread`.

    match: "hue": the window's mean chroma (BT.601) is that of a window of which `share` has the colour and the rest none, and
    brightness is left alone, so that outlines, shading and other parts stay. For black, white and greys, which have no hue, the
    brightness is matched too, of a window whose rest is as bright as drawings are (0.8). "rgb": the window's mean is the colour
    itself, which only a plain surface of that colour has.
    """

    colour: str
    spread: float = 0.05
    width: float = 0.25
    match: str = "hue"
    share: float = 0.6

    def __post_init__(self) -> None:
        check_float("spread", self.spread, 1e-4, 10)
        check_float("width", self.width, 0.01, 100)
        check_float("share", self.share, 0, 1)
        if self.match not in ("hue", "rgb"):
            raise ValueError(f"match is {self.match!r}; choose hue or rgb.")
        self.target()

    def target(self) -> tuple[float, float, float]:
        """Red, green and blue in [0, 1]."""
        return named_colour(self.colour)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        mean = mean_of_middle(images, self.width)
        target = constant(self.target(), images.device, images.dtype)
        if self.match == "hue":
            mean, target = luma_and_chroma(mean), luma_and_chroma(target)
            brightness = self.share * target[:1] + (1 - self.share) * AROUND
            chroma = self.share * target[1:]
            hueless = target[1:].norm() < GREY
            mean, target = (mean, torch.cat([brightness, chroma])) if hueless else (mean[:, 1:], chroma)
        return -0.5 * ((mean - target) / self.spread).square().sum(1)


@dataclass(frozen=True)
class CompositionEnergy:
    """What differs from the border's mean colour has its centre of mass at (x, y), shares of width and height from the top
    left, give or take `spread`."""

    x: float = 0.5
    y: float = 0.5
    spread: float = 0.03

    def __post_init__(self) -> None:
        check_float("x", self.x, 0, 1)
        check_float("y", self.y, 0, 1)
        check_float("spread", self.spread, 1e-4, 10)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        edges = torch.cat([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], 2)
        apart = (images - edges.mean(2)[..., None, None]).square().sum(1)
        mass = apart / (apart + 0.05)  # smooth, and the same for all that clearly differs
        total = mass.sum((1, 2)) + 1e-3
        rows, columns = ((torch.arange(n, device=images.device, dtype=images.dtype) + 0.5) / n for n in images.shape[2:])
        x = (mass * columns).sum((1, 2)) / total
        y = (mass * rows[:, None]).sum((1, 2)) / total
        return -0.5 * ((x - self.x).square() + (y - self.y).square()) / self.spread**2
