"""From a picture to a training tensor: which part of it, at which size, mirrored or not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Resize = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True)
class PictureView:
    """A part of a picture, in its own pixels, and whether it is mirrored."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    flip: bool = False


def choose_view(
    size: tuple[int, int], target: tuple[int, int], resize: Resize, rng: random.Random | None, random_crop: bool, flip: float
) -> PictureView:
    """What a variant shows of a picture of `size` (width, height) for a target (height, width). Without rng: the middle, not
    mirrored."""
    width, height = size
    mirrored = rng is not None and rng.random() < flip
    if resize != "crop":
        return PictureView((0, 0, width, height), mirrored)
    scale = max(target[1] / width, target[0] / height)
    across, down = width - target[1] / scale, height - target[0] / scale  # room
    u, v = (rng.random(), rng.random()) if rng is not None and random_crop else (0.5, 0.5)
    left, top = max(0.0, across * u), max(0.0, down * v)
    return PictureView((left, top, min(width, left + target[1] / scale), min(height, top + target[0] / scale)), mirrored)


def render(
    image: Image.Image, view: PictureView, target: tuple[int, int], resize: Resize, background: tuple[int, int, int]
) -> Tensor:
    """(3, height, width) float32 in [-1, 1]."""
    height, width = target
    if resize == "pad":
        scale = min(width / image.width, height / image.height)
        inside = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(inside, Image.Resampling.LANCZOS)
        image = Image.new("RGB", (width, height), background)
        image.paste(small, ((width - inside[0]) // 2, (height - inside[1]) // 2))
    else:
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=view.box)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)
