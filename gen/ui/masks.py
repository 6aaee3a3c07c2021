"""Masks as pictures: white where something is painted, black elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from gen.ui.painter import PaintedLayer


def mask_png(painted: PaintedLayer, size: tuple[int, int]) -> bytes:
    """A layer as the bytes of a picture. size: width and height of what it lies on."""
    if painted.png is not None:
        return painted.png
    assert painted.box is not None  # a layer has one of the two
    left, top, width, height = painted.box
    mask, file = Image.new("L", size), io.BytesIO()
    ImageDraw.Draw(mask).rectangle((left, top, left + width - 1, top + height - 1), fill=255)
    mask.save(file, "PNG")
    return file.getvalue()


def size_of(file: Path) -> tuple[int, int]:
    """Width and height of one of our own pictures."""
    with Image.open(file, formats=["PNG"]) as picture:
        return picture.size
