"""Pictures that a network of text and patches reads beside the noise: where they are, at which size, and where they stand.

Their latents are `Condition.extra["reference"]` (B, C, h', w'), of any size, and those beside the first `extra["reference_2"]`
and so on. Their patches stand in the sequence between text and the picture's own:

    text | patches of every picture to edit | patches of what is made
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor

from samplers.denoiser import Condition

PICTURES = Field(default=0, ge=0, le=16, description="pictures to edit that it reads beside the noise, at most; 0: none")
# width and height of the pictures that FLUX Kontext was trained on
SIZES = (
    *((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104), (1024, 1024)),
    *((1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672)),
)

AREA = 1024 * 1024  # pixels of the pictures that Qwen-Image-Edit reads


def kontext_size(height: int, width: int) -> tuple[int, int]:
    """The height and width, of those that FLUX Kontext was trained on, whose shape is nearest to a picture's."""
    return min(((h, w) for w, h in SIZES), key=lambda size: (abs(width / height - size[1] / size[0]), size[1]))


def sides_of(area: int, height: int, width: int) -> tuple[int, int]:
    """The height and width, multiples of 32, of about `area` pixels in a picture's shape."""
    ratio = width / height
    wide = math.sqrt(area * ratio)
    return max(round(wide / ratio / 32), 1) * 32, max(round(wide / 32), 1) * 32


def qwen_size(height: int, width: int) -> tuple[int, int]:
    """The height and width at which Qwen-Image-Edit reads a picture."""
    return sides_of(AREA, height, width)


def references(condition: Condition) -> list[Tensor]:
    """The pictures that an editing network reads, in their order: latents (B, C, h', w') each."""
    extra = condition.extra
    names = sorted((name for name in extra if name.startswith("reference")), key=lambda name: (len(name), name))
    return [extra[name] for name in names]


def read_pictures(condition: Condition, most: int) -> list[Tensor]:
    """`references`, of a network that reads at most so many; ValueError for more."""
    pictures = references(condition)
    if len(pictures) > most:
        takes = f"at most {most} pictures to edit (its config's pictures)" if most else "no picture to edit"
        raise ValueError(f"This network takes {takes}, and {len(pictures)} were given.")
    return pictures


def side_by_side(sides: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where the corner of each picture of so many (rows, columns) is, laid out so that none covers another: the first at 0, the
    next below or beside what is there, whichever keeps the longer side of the whole shorter, as ComfyUI places the pictures
    that FLUX Kontext reads."""
    corners, rows, columns = [], 0, 0
    for height, width in sides:
        corner = (0, columns) if height + rows > width + columns else (rows, 0)
        rows, columns = max(rows, height + corner[0]), max(columns, width + corner[1])
        corners.append(corner)
    return corners


def embedded(pictures: Sequence[Tensor], embed: Callable[[Tensor], Tensor], image: Tensor) -> tuple[Tensor, int]:
    """(tokens of all pictures and then of what is made, how many the pictures have). image: what is made, (B, P, D)."""
    before = [embed(one.to(image.dtype)) for one in pictures]
    return (torch.cat([*before, image], dim=1), sum(one.shape[1] for one in before)) if before else (image, 0)
