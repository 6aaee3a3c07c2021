"""Makes docs/translate.png, and prints the captions of its columns: python docs/make_translate_sheet.py

Two drawings by hand and outlines of icons from the data; what the shipped translator makes of them without a prompt, and with
one; and the icons.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distill.data.source import make_source
from gen import Generator
from gen.generator import to_pil

HERE = Path(__file__).parent
SIZE, GAP, COLUMNS = 128, 6, 8
HAND = ("cat_edges.png", "car_edges.png")
PROMPTS = ("a red cat", "a blue car")


def picture(image: Tensor) -> Image.Image:
    """Of (3, H, W) in [-1, 1]."""
    return to_pil((image[None] / 2 + 0.5).permute(0, 2, 3, 1).numpy())[0]


def main(target: Path = HERE / "translate.png") -> None:
    config = {"type": "outlines", "of": {"type": "emoji", "recolor": 0.0, "background": 0.0, "drop_caption": 0.0, "style": 0.0}}
    batch = make_source(config, 0).batch(range(COLUMNS - len(HAND)))
    generator = Generator.from_pretrained("fast", device="cpu", dtype="float32")
    rows: list[list[Image.Image]] = [[], [], [], []]
    drawings = [Image.open(HERE / "examples" / name).convert("RGB") for name in HAND]
    drawings += [picture(image) for image in batch.images]
    names = [*PROMPTS, *(batch.captions or [])]
    blank = Image.new("RGB", (SIZE, SIZE), "white")
    icons = [blank] * len(HAND) + [picture(image) for image in batch.extra["source"]]
    for drawing, name, icon in zip(drawings, names, icons, strict=True):
        made = [generator.translate(drawing, prompt, progress=False).images[0] for prompt in (None, name)]
        for row, image in zip(rows, (drawing, *made, icon), strict=True):
            row.append(image)
    sheet = Image.new("RGB", (COLUMNS * (SIZE + GAP) - GAP, len(rows) * (SIZE + GAP) - GAP), "white")
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            sheet.paste(image.resize((SIZE, SIZE)), (column * (SIZE + GAP), row * (SIZE + GAP)))
    sheet.save(target, optimize=True)
    print(*names, sep="\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*map(Path, sys.argv[1:]))
