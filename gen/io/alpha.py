"""Arithmetic of pictures with alpha (Porter and Duff 1984, "Compositing digital images").

A layer is (B, 4, H, W) in [0, 1], its colours multiplied by alpha ("premultiplied"): only so are averages of pixels, and with
them scaling and blurring, what they look like, and only so is `over` associative. Files hold colours that are not multiplied
("straight"). A background is an opaque picture (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def premultiply(straight: Tensor) -> Tensor:
    """The layer of straight colours and alpha (B, 4, H, W)."""
    return torch.cat([straight[:, :3] * straight[:, 3:], straight[:, 3:]], 1)


def straighten(layer: Tensor) -> Tensor:
    """Straight colours and alpha (B, 4, H, W) of a layer.

    Where alpha is 0 there is no colour to divide out. Such pixels take that of what is near, so that programs which scale or
    blur straight colours mix in no black at the edges: the mean of the smallest of the squares of 2, 4, 8, ... pixels around
    the pixel in which anything is seen. A layer of nothing stays black.
    """
    straight, seen = divided(layer), layer[:, 3:] > 0
    if bool(seen.all()) or max(layer.shape[2:]) == 1:
        return straight
    height, width = layer.shape[2:]
    around = straighten(halved(layer))[:, :3]
    around = around.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
    return torch.cat([torch.where(seen, straight[:, :3], around), layer[:, 3:]], 1)


def divided(layer: Tensor) -> Tensor:
    """Straight colours and alpha (B, 4, H, W) of a layer, black where nothing is seen."""
    colour, alpha = layer[:, :3], layer[:, 3:]
    straight = torch.where(alpha > 0, colour / alpha.clamp_min(torch.finfo(layer.dtype).tiny), 0).clamp(0, 1)
    return torch.cat([straight, alpha], 1)


def halved(layer: Tensor) -> Tensor:
    """Means of squares of two pixels, of what lies beyond the edge as nothing."""
    return F.avg_pool2d(F.pad(layer, (0, layer.shape[3] % 2, 0, layer.shape[2] % 2)), 2)


def over(top: Tensor, bottom: Tensor) -> Tensor:
    """The layer that two layers look like, one upon the other: top + (1 - alpha of top) bottom."""
    return top + (1 - top[:, 3:]) * bottom


def upon(layer: Tensor, background: Tensor) -> Tensor:
    """The opaque picture (B, 3, H, W) that a layer upon a background looks like."""
    return layer[:, :3] + (1 - layer[:, 3:]) * background


def opaque(picture: Tensor) -> Tensor:
    """A picture (B, 3, H, W) as a layer without transparency."""
    return torch.cat([picture, torch.ones_like(picture[:, :1])], 1)


def flattened(layers: Iterable[Tensor]) -> Tensor:
    """The layer that one or more layers look like together, the lowest first."""
    return functools.reduce(lambda seen, layer: over(layer, seen), layers)


def resized(layer: Tensor, height: int, width: int) -> Tensor:
    """A layer scaled by a triangular filter, which leaves what is flat as it is and never goes beyond [0, 1]."""
    if layer.shape[2:] == (height, width):
        return layer
    return F.interpolate(layer, (height, width), mode="bilinear", align_corners=False, antialias=True)


def lifted(picture: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """The layer of an opacity (B, 1, H, W) that makes `picture` of `background`: picture - (1 - alpha) background, within
    [0, alpha], which are the colours that a layer of this opacity can have."""
    colour = picture - (1 - alpha) * background
    return torch.cat([torch.minimum(colour.clamp_min(0), alpha), alpha], 1)


def completed(picture: Tensor, layer: Tensor, background: Tensor) -> Tensor:
    """The background nearest to `background` of which a layer makes exactly `picture`: where `lifted` had to bound its colours,
    the rest is the background's. What an opaque pixel hides stays as it is."""
    alpha = layer[:, 3:]
    seen = 1 - alpha
    rest = (picture - layer[:, :3]) / seen.clamp_min(torch.finfo(picture.dtype).eps)
    return torch.where(seen > 0, rest, background).clamp(0, 1)


def least_opacity(picture: Tensor, background: Tensor) -> Tensor:
    """The smallest opacity (B, 1, H, W) of a layer that makes `picture` of `background`: at least one of its channels is then
    black or full."""
    tiny = torch.finfo(picture.dtype).eps
    brighter = (picture - background) / (1 - background).clamp_min(tiny)
    darker = (background - picture) / background.clamp_min(tiny)
    return torch.maximum(brighter, darker).amax(1, keepdim=True).clamp(0, 1)
