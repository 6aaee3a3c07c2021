"""Masks of a layout's regions: from boxes and pictures to the grid of latents, and as text in a recipe."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.images import read_picture

MAX_MASK = 100_000  # characters


def box_in_pixels(
    box: tuple[float, float, float, float], height: int, width: int, region: int
) -> tuple[float, float, float, float]:
    """(left, top, width, height) in pixels, inside the picture."""
    left, top, wide, tall = box
    if max(box) <= 1:
        left, top, wide, tall = left * width, top * height, wide * width, tall * height
    if wide <= 0 or tall <= 0:
        raise ValueError(f"The box {list(box)} of region {region} is empty; give [left, top, width, height].")
    if left + wide > width + 1e-6 or top + tall > height + 1e-6:
        raise ValueError(
            f"The box {list(box)} of region {region} reaches outside the picture of {width} x {height}; "
            "[left, top, width, height] are pixels, or shares of the picture where all are at most 1."
        )
    return left, top, wide, tall


def box_mask(box: tuple[float, float, float, float], height: int, width: int, factor: int) -> Tensor:
    """How much of each latent cell a box of pixels covers."""

    def covered(start: float, length: float, cells: int) -> Tensor:
        edge = torch.arange(cells + 1, dtype=torch.float64) * factor
        inside = (torch.clamp(edge[1:], max=start + length) - torch.clamp(edge[:-1], min=start)).clamp(min=0)
        return (inside / factor).clamp(max=1)

    left, top, wide, tall = box
    mask = covered(top, tall, height // factor)[:, None] * covered(left, wide, width // factor)[None]
    mask = torch.where(mask < 1e-6, 0.0, mask)
    return mask[None, None].float()


def read_region_mask(mask: Any, region: int) -> Tensor:
    """(1, 1, H, W) in [0, 1]."""
    return read_picture(f"The mask of region {region}", mask, "L")


def mask_on_latents(mask: Tensor, height: int, width: int, factor: int) -> Tensor:
    """A picture's mask on the grid of latents; ValueError unless it has the picture's size or that of its latents."""
    size = tuple(mask.shape[-2:])
    if size == (height, width):
        return F.avg_pool2d(mask, factor)
    if size == (height // factor, width // factor):
        return mask
    raise ValueError(
        f"A mask is {size[1]} x {size[0]} pixels, but the picture {width} x {height}; scale one of them so that they agree."
    )


def pack_mask(mask: Tensor, region: int) -> str:
    """A mask as text: its bytes, compressed."""
    values = (mask * 255).round().to(torch.uint8)
    if not bool(values.any()):
        raise ValueError(f"The mask of region {region} is empty; paint where it is to be, or leave it out.")
    text = base64.b64encode(zlib.compress(values.contiguous().numpy().tobytes(), 9)).decode()
    if len(text) > MAX_MASK:
        raise ValueError(f"The mask of region {region} is too intricate to be kept in a recipe; smooth it, or use fewer greys.")
    return text


def unpack_mask(text: str | None, size: tuple[int, int], region: int) -> Tensor:
    """(1, 1, h, w) floats in [0, 1]; ValueError for text that is not a mask of this size."""
    count = size[0] * size[1]
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(text or "", validate=True), count + 1)  # never more than is needed
    except (ValueError, zlib.error):
        raise ValueError(f"The mask of region {region} is damaged; make the picture anew from its layout.") from None
    if len(raw) != count:
        raise ValueError(f"The mask of region {region} is not of {size[0]} x {size[1]} cells; its recipe is damaged.")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(1, 1, *size).float() / 255
