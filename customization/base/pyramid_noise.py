"""Noise of several resolutions, so that a network learns what is large in a picture, such as its mean brightness.

Each further resolution has half the side, and `discount` times the last one's share; each sample's sum is divided by its
standard deviation. kohya's `multires_noise`, after Whitaker (2023); there the ratio of sides is drawn, here it is 2,
so that sample i's noise does not depend on its batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.types import Draws
from gen.nn.registry import Config


class PyramidConfig(Config):
    """levels: how many further resolutions, as far as there are sides above one. discount: of each from the one before."""

    levels: int = Field(default=6, gt=0, le=12)
    discount: float = Field(default=0.3, gt=0, lt=1)


def add_pyramid(noise: Tensor, draws: Draws, config: PyramidConfig) -> Tensor:
    """Noise (B, C, h, w) with coarser noise on top, of unit deviation for each sample."""
    height, width = noise.shape[2:]
    for level in range(1, config.levels + 1):
        sides = max(1, height >> level), max(1, width >> level)
        coarse = draws.normal(f"pyramid {level}", (noise.shape[1], *sides), noise.device).to(noise)
        noise = noise + config.discount**level * F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
        if min(sides) == 1:
            break
    return noise / noise.flatten(1).std(1, correction=0)[:, None, None, None]
