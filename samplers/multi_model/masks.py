"""Masks of regions on the grid of x: (1, 1, H, W) floats from 0 to 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]  # (top, left, height, width) in cells of x


def box_mask(box: Box, height: int, width: int, *, device=None, dtype=None) -> Tensor:
    """1 inside a box of an (H, W) canvas, 0 outside. ValueError for a box that is empty or reaches over the edge."""
    check_box(box, height, width)
    top, left, tall, wide = box
    mask = torch.zeros(1, 1, height, width, device=device, dtype=dtype)
    mask[..., top : top + tall, left : left + wide] = 1
    return mask


def check_box(box: Box, height: int, width: int, name: str = "box") -> None:
    top, left, tall, wide = box
    if tall < 1 or wide < 1:
        raise ValueError(f"The {name} {tuple(box)} is empty; give (top, left, height, width) with both sides at least 1.")
    if top < 0 or left < 0 or top + tall > height or left + wide > width:
        raise ValueError(
            f"The {name} {tuple(box)} (top, left, height, width) reaches outside the canvas of {height} x {width}; "
            "keep it inside."
        )


def soften(mask: Tensor, radius: float) -> Tensor:
    """A mask (..., H, W) with edges that fade over about `radius` cells to either side: a Gaussian blur of radius / 2.

    At the border the mask goes on as it is there, so a mask of ones stays one. radius 0 changes nothing.
    """
    if radius < 0:
        raise ValueError(f"A soft edge of {radius} cells was asked for; give 0 (hard) or more.")
    if radius == 0:
        return mask
    reach = max(1, round(1.5 * radius))
    offsets = torch.arange(-reach, reach + 1, device=mask.device, dtype=mask.dtype)
    kernel = torch.exp(-0.5 * (offsets / (radius / 2)) ** 2)
    kernel = kernel / kernel.sum()
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), kernel.reshape(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), kernel.reshape(1, 1, -1, 1))
    return flat.clamp(0, 1).reshape(mask.shape)


def rest(masks: list[Tensor]) -> Tensor:
    """What the masks leave of the canvas: 1 - their sum, at least 0."""
    return (1 - torch.stack(masks).sum(0)).clamp(min=0)


def check_mask(mask: Tensor, name: str) -> None:
    if mask.ndim != 4 or mask.shape[1] != 1 or not mask.is_floating_point():
        raise ValueError(f"The mask of {name} is {tuple(mask.shape)} of {mask.dtype}; give floats (1 or B, 1, H, W).")
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(f"The mask of {name} must hold numbers from 0 to 1; others, or NaN, were given.")
    if not bool((mask > 0).flatten(1).any(1).all()):
        raise ValueError(f"The mask of {name} is 0 everywhere, so nothing of it would be seen; enlarge it or leave it out.")
