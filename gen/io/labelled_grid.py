"""A table of pictures: what the columns are above them, what the rows are beside them, on white."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from gen.io.contact_sheet import MAX_PIXELS, wrap
from gen.io.images import flat

_GAP, _LINES = 8, 4
_SIDE = (60, 160)  # pixels of the column of labels, at least and at most


def labelled_grid(
    pictures: Mapping[tuple[int, int], Image.Image],
    columns: Sequence[str],
    rows: Sequence[str],
    title: str = "",
    font_size: int = 12,
) -> Image.Image:
    """One picture of many.

    pictures: (column, row) -> picture; a place without one stays white. Those of unlike sizes are centred in equal cells.
    columns, rows: labels, "" for none.
    title: above all of it, in two lines at most.
    Raises ValueError for no pictures, and for a sheet of more than 100 million pixels.
    """
    if not pictures:
        raise ValueError("A grid needs at least one picture.")
    wide, tall = max(one.width for one in pictures.values()), max(one.height for one in pictures.values())
    font = ImageFont.load_default(font_size)
    line = math.ceil(font_size * 1.3)
    longest = max((font.getlength(label[:200]) for label in rows), default=0.0)
    side = 0 if not any(rows) else int(min(max(longest + 1, _SIDE[0]), _SIDE[1]))
    left = _GAP + (side + _GAP if side else 0)
    full_width = left + len(columns) * (wide + _GAP)
    heading = wrap(title, font, full_width - 2 * _GAP, 2) if title else []
    above = [wrap(label, font, wide, _LINES) if label else [] for label in columns]
    beside = [wrap(label, font, side, max(tall // line, 1)) if label else [] for label in rows]
    head = max(map(len, above)) * line
    top = _GAP + len(heading) * line + (_GAP if heading else 0) + head + (_GAP // 2 if head else 0)
    full_height = top + len(rows) * (tall + _GAP)
    if full_width * full_height > MAX_PIXELS:
        raise ValueError(f"A sheet of {full_width} x {full_height} pixels is too large; show fewer or smaller pictures.")

    sheet = Image.new("RGB", (full_width, full_height), "white")
    draw = ImageDraw.Draw(sheet)

    def write(x: int, y: int, lines: Sequence[str]) -> None:
        for i, text in enumerate(lines):
            draw.text((x, y + i * line), text, fill="black", font=font)

    write(_GAP, _GAP, heading)
    for i, lines in enumerate(above):
        write(left + i * (wide + _GAP), top - _GAP // 2 - len(lines) * line, lines)
    for i, lines in enumerate(beside):
        write(_GAP, top + i * (tall + _GAP) + max(tall - len(lines) * line, 0) // 2, lines)
    for (x, y), picture in pictures.items():
        place = left + x * (wide + _GAP) + (wide - picture.width) // 2, top + y * (tall + _GAP) + (tall - picture.height) // 2
        sheet.paste(flat(picture), place)
    return sheet
