"""Makes docs/reference.png: drawings and pictures that resemble them: python docs/make_reference_sheet.py

Left the reference, a drawing of the training data, which the encoder has seen; then what the default model draws with it; last
with `<ref>` in the prompt but without attention to it (scale 0).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from distill.data.emoji.data import EmojiConfig, EmojiData, Variant
from gen import Generator

HERE = Path(__file__).parent
SIZE = 128
THINGS = ("cat face", "red apple", "automobile", "mushroom", "owl")
PROMPTS = ("a <ref>", "a <ref> on a yellow background", "a blue <ref>", "a green <ref> on a pink background")


def reference(data: EmojiData, thing: str) -> Image.Image:
    """The first drawing of a thing, on white."""
    index = next(i for i, record in enumerate(data.records) if record.label == thing)
    pixels = data.render([Variant(index)])[0].add(1).mul(127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def main(target: Path = HERE / "reference.png") -> None:
    generator = Generator.from_pretrained("default", device="cpu", dtype="float32")
    data = EmojiData(EmojiConfig(size=SIZE))
    columns = len(PROMPTS) + 2
    sheet = Image.new("RGB", (columns * (SIZE + 8) - 8, len(THINGS) * (SIZE + 8) - 8), "white")
    for row, thing in enumerate(THINGS):
        shown = reference(data, thing)
        call = {"references": shown, "seed": 0, "progress": False}
        made = generator(list(PROMPTS), **call).images + generator(PROMPTS[0], references_scale=0.0, **call).images
        for column, picture in enumerate((shown, *made)):
            sheet.paste(picture, (column * (SIZE + 8), row * (SIZE + 8)))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
