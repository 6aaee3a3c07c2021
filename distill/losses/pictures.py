"""How pictures (B, C, H, W) in [-1, 1] that a decoder made differ from what they should be, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_difference(y: Tensor, x: Tensor) -> Tensor:
    """Mean |difference| of the horizontal plus that of the vertical first differences of two pictures (B, C, H, W), which pays
    for blurred edges."""
    error = y - x
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def within(y: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """y, but as x where both are at `high` or beyond, or at `low` or beyond: clamped it is right, with nothing to gain."""
    return torch.where(((x >= high) & (y > high)) | ((x <= low) & (y < low)), x, y)


def within_white(y: Tensor, x: Tensor) -> Tensor:
    """Pictures y, but as x where both are white (1) or beyond, or black (-1) or beyond: nothing to see there."""
    return within(y, x, -1, 1)
