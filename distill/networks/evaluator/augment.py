"""Changes of pictures that keep what they show, so that the evaluation network also knows styles it never saw.

Pictures are (B, 3, H, W) in [-1, 1]; every change is drawn per picture from given numbers in [0, 1), nothing else.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 16  # random numbers per picture that `augment` uses


def affine(images: Tensor, u: Tensor) -> Tensor:
    """Zoom by 0.83 to 1.2 (unequal by up to 10 %), turn by up to 12 degrees, shift by up to 4 %; u is (B, 5) in [0, 1)."""
    zoom = torch.exp((u[:, 0] - 0.5) * 0.37)
    stretch, angle = torch.exp((u[:, 1] - 0.5) * 0.2), (u[:, 2] - 0.5) * (math.pi / 7.5)
    matrix = torch.stack(
        [zoom * stretch * angle.cos(), -zoom * angle.sin(), (u[:, 3] - 0.5) * 0.16,
         zoom * angle.sin(), zoom / stretch * angle.cos(), (u[:, 4] - 0.5) * 0.16], 1,
    ).view(-1, 2, 3)  # fmt: skip
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def outline(images: Tensor, strength: Tensor) -> Tensor:
    """Darken where colours change, as if edges were drawn with a pen; strength (B,), 0 for none."""
    dx = F.pad(images.diff(dim=-1), (0, 1)).abs().amax(1, keepdim=True)
    dy = F.pad(images.diff(dim=-2), (0, 0, 0, 1)).abs().amax(1, keepdim=True)
    edges = F.max_pool2d(torch.maximum(dx, dy), 3, 1, 1).clamp(max=1)
    ink = (strength.view(-1, 1, 1, 1) * edges).clamp(max=1)
    return images * (1 - ink) - ink


def posterise(images: Tensor, levels: Tensor) -> Tensor:
    """Round every colour channel to `levels` (B,) steps: flat areas in place of gradients. inf changes nothing."""
    steps = levels.view(-1, 1, 1, 1)
    rounded = ((images + 1) / 2 * steps).round() / steps * 2 - 1
    return torch.where(steps.isfinite(), rounded, images)


def blur(images: Tensor, weight: Tensor) -> Tensor:
    """Mix in a 5x5 binomial blur; weight (B,) in [0, 1]."""
    row = images.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    smooth = F.conv2d(padded, row.view(1, 1, 1, 5).expand(3, 1, 1, 5), groups=3)
    smooth = F.conv2d(smooth, row.view(1, 1, 5, 1).expand(3, 1, 5, 1), groups=3)
    return images + weight.view(-1, 1, 1, 1) * (smooth - images)


def tone(images: Tensor, u: Tensor) -> Tensor:
    """Contrast changed by up to 15 %, brightness by 7.5 % of its range, saturation by 30 %, hues not; u (B, 3) in [0, 1)."""
    contrast, brightness, saturation = ((u - 0.5) * 0.3).view(-1, 3, 1, 1, 1).unbind(1)
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * (1 + 2 * saturation)
    return images * (1 + contrast) + brightness


def augment(images: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """All of the above, each on a share of the pictures; u is (B, NUMBERS) in [0, 1), noise (B, 3, H, W) unit normal."""
    images = affine(images, u[:, :5])
    images = torch.where((u[:, 5] < 0.5).view(-1, 1, 1, 1), tone(images, u[:, 6:9]), images)
    levels = torch.where(u[:, 9] < 0.15, 2 + (u[:, 10] * 4).floor(), math.inf)
    images = posterise(images, levels)
    images = outline(images, torch.where(u[:, 11] < 0.3, 0.5 + u[:, 12] * 1.5, 0.0))
    images = blur(images, torch.where(u[:, 13] < 0.3, u[:, 14], 0.0))
    level = (u[:, 15] - 0.6).clamp_min(0) * 0.35
    return (images + level.view(-1, 1, 1, 1) * noise).clamp(-1, 1)


def views(images: Tensor, count: int) -> list[Tensor]:
    """The pictures, and `count` copies of each with other shapes and tones, always the same ones; differentiable."""
    views = [images]
    for k in range(count):
        u = torch.rand(len(images), 8, generator=torch.Generator().manual_seed(k)).to(images)
        views.append(tone(affine(images, u[:, :5]), u[:, 5:]))
    return views
