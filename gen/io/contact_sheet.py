"""Contact sheets: pictures side by side with their captions under them, on white; and tensors as pictures."""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from gen.io.images import flat
from gen.io.weights import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

MAX_PIXELS = 100_000_000
_GAP = 8


def to_pictures(images: Tensor) -> list[Image.Image]:
    """8-bit pictures of a tensor (N, 3, H, W) in [-1, 1]; what lies outside is clipped."""
    pixels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in pixels.cpu().numpy()]


Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def write_png(image: Image.Image, path: Path | str) -> None:
    """Write, or replace, a PNG in one piece."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def drawable(text: str, font: Font) -> str:
    """The text with a question mark in the place of every character that the font has no shape for, or its letter without
    accents where it has that; the font would draw a box."""
    known: dict[str, str] = {}

    def shape(character: str) -> tuple[tuple[int, int], bytes]:
        mask = font.getmask(character)
        return mask.size, bytes(mask)

    none = shape("\U0010fffd")  # a character of private use: no font has it

    def of(character: str) -> str:
        if character.isascii() or character.isspace() or shape(character) != none:
            return character
        base = unicodedata.normalize("NFKD", character)[0]
        return base if base != character and (base.isascii() or shape(base) != none) else "?"

    for character in dict.fromkeys(text):
        known[character] = of(character)
    return "".join(known[character] for character in text)


def wrap(text: str, font: Font, width: int, lines: int) -> list[str]:
    """The text in at most `lines` lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    wrapped: list[str] = []
    for paragraph in drawable(text[:2000], font).split("\n"):
        line = ""
        for word in paragraph.split():
            if not line or font.getlength(f"{line} {word}") <= width:
                line = f"{line} {word}".strip()
            else:
                wrapped.append(line)
                line = word
        wrapped.append(line)
    kept = [_fit(line, font, width) for line in wrapped[:lines]]
    if len(wrapped) > lines:
        kept[-1] = _fit(kept[-1] + "…", font, width)
    return kept


def _fit(line: str, font: Font, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    line = line.removesuffix("…")
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def contact_sheet(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    title: str = "",
    font_size: int = 12,
    max_lines: int = 3,
) -> Image.Image:
    """One picture of many: row by row, `columns` wide (near a square when None), each with its caption below.

    Pictures of unlike sizes are centred in equal cells. Raises ValueError for no pictures, for captions of another number,
    and for a sheet of more than 100 million pixels.
    """
    if not images:
        raise ValueError("A contact sheet needs at least one picture.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"A contact sheet of {len(images)} pictures got {len(captions)} captions; give one each.")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise ValueError(f"A contact sheet got columns={columns!r}; give a whole number of at least 1.")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    cell, height = max(image.width for image in images), max(image.height for image in images)

    font = ImageFont.load_default(font_size)
    line = math.ceil(font_size * 1.3)
    labels = [wrap(caption, font, cell, max_lines) if caption else [] for caption in captions or [""] * len(images)]
    below = line * max(map(len, labels))
    full_width = columns * (cell + _GAP) + _GAP
    heading = wrap(title, font, full_width - 2 * _GAP, 2) if title else []
    top = _GAP + len(heading) * line + (_GAP if heading else 0)
    full_height = top + rows * (height + below + _GAP)
    if full_width * full_height > MAX_PIXELS:
        raise ValueError(f"A contact sheet of {full_width} x {full_height} pixels is too large; show fewer pictures.")

    sheet = Image.new("RGB", (full_width, full_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, text in enumerate(heading):
        draw.text((_GAP, _GAP + i * line), text, fill="black", font=font)
    for i, (image, lines) in enumerate(zip(images, labels, strict=True)):
        x, y = _GAP + i % columns * (cell + _GAP), top + i // columns * (height + below + _GAP)
        sheet.paste(flat(image), (x + (cell - image.width) // 2, y + (height - image.height) // 2))
        for n, text in enumerate(lines):
            draw.text((x, y + height + n * line), text, fill="black", font=font)
    return sheet
