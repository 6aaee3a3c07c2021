"""Large pictures and latents in tiles that overlap and fade into one another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(x: Tensor, code: Callable[[Tensor], Tensor], tile: int, overlap: int, grow: int = 1, shrink: int = 1) -> Tensor:
    """`code` of x (B, C, h, w) by square tiles that overlap and fade into one another linearly: a weighted mean.

    tile, overlap: in x's pixels, multiples of `shrink`. code's output is `grow` times larger or `shrink` times smaller than
    its input. Exact for a code that looks at no neighbours.
    """
    if not 0 <= overlap < tile or tile % shrink or overlap % shrink:
        raise ValueError(f"A tile of {tile} with an overlap of {overlap} is not possible; give 0 <= overlap < tile.")
    height, width = x.shape[2:]
    total: Tensor | None = None
    weight: Tensor | None = None
    for top in _starts(height, tile, overlap, shrink):
        for left in _starts(width, tile, overlap, shrink):
            part = x[..., top : top + tile, left : left + tile]
            out = code(part)
            if total is None or weight is None:
                total = out.new_zeros(*out.shape[:2], height * grow // shrink, width * grow // shrink)
                weight = out.new_zeros(1, 1, *total.shape[2:])
            rows, columns = out.shape[2:]
            y, z, fade = top * grow // shrink, left * grow // shrink, overlap * grow // shrink
            mask = (
                _ramp(rows, fade, y > 0, y + rows < total.shape[2], out)[:, None]
                * _ramp(columns, fade, z > 0, z + columns < total.shape[3], out)[None]
            )
            total[..., y : y + rows, z : z + columns] += out * mask
            weight[..., y : y + rows, z : z + columns] += mask
    assert total is not None and weight is not None
    return total / weight


def _starts(length: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """Where tiles begin: evenly over the length, at least `overlap` in common."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round((length - tile) * i / (count - 1) / multiple) * multiple for i in range(count)]


def _ramp(length: int, fade: int, before: bool, after: bool, like: Tensor) -> Tensor:
    """Weights (length,): 1 inside, falling linearly over `fade` towards an edge with a neighbour."""
    distance = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / max(fade, 1)
    ramp = torch.ones_like(distance)
    if before:
        ramp = torch.minimum(ramp, distance)
    if after:
        ramp = torch.minimum(ramp, distance.flip(0))
    return ramp
