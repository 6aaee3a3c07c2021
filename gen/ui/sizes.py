"""Sizes of a picture by its shape, with as many pixels as the model's own."""

from __future__ import annotations

import math

SHAPES = ((1, 1), (4, 3), (3, 2), (16, 9), (3, 4), (2, 3), (9, 16))


def sizes_of(side: int, multiple: int) -> dict[str, tuple[int, int]]:
    """Name of a shape -> (width, height) in pixels.

    side: of the model's own picture. multiple: what both sides are a multiple of.
    """
    sizes = {}
    for wide, tall in SHAPES:
        width, height = (max(round(side * math.sqrt(share) / multiple), 1) * multiple for share in (wide / tall, tall / wide))
        sizes[f"{wide}:{tall}"] = width, height
    return sizes
