"""Denoising task routing (arXiv 2310.07138): every noise level has its own window of channels in the blocks of a transformer.

A block works on the channels of its window alone; the others pass by unchanged. Windows of neighbouring levels overlap almost
wholly, so they share most of their work, and those of far levels do not. No weight is added.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gen.nn.registry import Config
from samplers.path import wide_dtype


class Routing(Config):
    """share: beta, the part of the channels that a level works on; power: alpha, how much later the window moves than the
    time does; last: the time, on the network's own clock, at which it has arrived (999 for a table of 1000 steps)."""

    share: float = Field(default=0.8, gt=0, le=1)
    power: float = Field(default=4.0, gt=0)
    last: float = Field(default=999.0, gt=0)

    def mask(self, time: Tensor, dim: int, dtype: torch.dtype) -> Tensor | None:
        """(B,) -> (B, 1, dim): 1 in the window, which begins at round((t / last)^alpha (dim - width)), 0 elsewhere; width is
        floor(beta dim). None where the window is everything. Times outside 0 .. last count as the nearer end."""
        width = int(self.share * dim)
        if width == dim:
            return None
        exact = time.to(wide_dtype(time.device))
        start = ((exact / self.last).clamp(0, 1) ** self.power * (dim - width)).round()[:, None, None]
        channel = torch.arange(dim, device=time.device)
        return ((channel >= start) & (channel < start + width)).to(dtype)


def route(x: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(what a block works on, what is added to its result)."""
    return (x, None) if active is None else (x * active, x * (1 - active))
