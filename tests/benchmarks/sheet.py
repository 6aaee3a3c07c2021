"""A sheet of pictures for a benchmark: rows are methods, columns what was asked for; 256 colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from gen.io.contact_sheet import to_pictures, wrap, write_png

TOP, GAP = 34, 3


def sheet(rows: Mapping[str, Sequence[Tensor]], columns: Sequence[str], path: Path, side: int = 112, left: int = 118) -> None:
    """One picture (3, H, W) in [0, 1] per row and column, each `side` pixels wide; names of rows in a margin of `left`."""
    page = Image.new("RGB", (left + len(columns) * (side + GAP), TOP + len(rows) * (side + GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for column, text in enumerate(columns):
        for line, words in enumerate(wrap(text, font, side, 2)):
            pen.text((left + column * (side + GAP), 2 + 14 * line), words, fill="black", font=font)
    for place, (name, images) in enumerate(rows.items()):
        top = TOP + place * (side + GAP)
        for line, words in enumerate(wrap(name, font, left - 6, 2)):
            pen.text((2, top + side // 2 - 12 + 14 * line), words, fill="black", font=font)
        for column, image in enumerate(images):
            [picture] = to_pictures(image[None] * 2 - 1)
            page.paste(picture.resize((side, side), Image.Resampling.BOX), (left + column * (side + GAP), top))
    write_png(page.quantize(256, dither=Image.Dither.NONE), path)
