"""Outlines of pictures as networks that read drawings learn from them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.types import Draws
from gen.models.control_pictures import edges

THRESHOLDS = ((0.04, 0.10), (0.10, 0.22))  # (lowest, highest) of each of `edges`


@torch.no_grad()
def drawn_edges(pictures: Tensor, draws: Draws, thick: float = 0.4) -> Tensor:
    """White outlines on black of pictures (B, 3, H, W) in [0, 1], by thresholds that change from sample to sample, so that a
    network that learns from them reads other drawings too. thick: share of them with lines three pixels wide."""
    low, high = (
        a + (b - a) * draws.uniform(name, device=pictures.device) for name, (a, b) in zip("lh", THRESHOLDS, strict=True)
    )
    wide = draws.uniform("thick", device=pictures.device) < thick
    with torch.autocast(pictures.device.type, enabled=False):
        return thickened(edges(pictures, low, high), wide)


@torch.no_grad()
def thickened(lines: Tensor, rows: Tensor) -> Tensor:
    """White lines (B, 3, H, W), of `rows` (B,) bool three pixels wide."""
    return torch.where(rows.view(-1, 1, 1, 1), F.max_pool2d(lines, 3, 1, 1), lines)
