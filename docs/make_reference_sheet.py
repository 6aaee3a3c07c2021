"""Makes docs/reference.png: drawings and pictures that resemble them: python docs/make_reference_sheet.py

Left the reference, a drawing of the training data, which the encoder has seen; then what the default model draws with it; last
with `<ref>` in the prompt but without attention to it (scale 0).
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from PIL import Image

from distill.data.emoji.archive import read_archive
from distill.data.emoji.data import SHIPPED
from gen import Generator

HERE = Path(__file__).parent
SIZE = 128
THINGS = ("red apple", "owl", "automobile")
PROMPTS = ("a <ref>", "a blue <ref> on a yellow background")


def reference(thing: str) -> Image.Image:
    """The first drawing of a thing, on white."""
    records, drawings, _ = read_archive(SHIPPED)
    index = next(i for i, record in enumerate(records) if record.label == thing)
    drawn = Image.open(io.BytesIO(drawings[index])).convert("RGBA").resize((SIZE, SIZE))
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def main(target: Path = HERE / "reference.png") -> None:
    generator = Generator.from_pretrained("default", device="cpu", dtype="float32")
    sheet = Image.new("RGB", (4 * (SIZE + 8) - 8, len(THINGS) * (SIZE + 8) - 8), "white")
    for row, thing in enumerate(THINGS):
        shown = reference(thing)
        call = {"references": shown, "seed": 0, "num_inference_steps": 8, "progress": False}
        made = generator(list(PROMPTS), **call).images + generator(PROMPTS[0], references_scale=0.0, **call).images
        for column, picture in enumerate((shown, *made)):
            sheet.paste(picture, (column * (SIZE + 8), row * (SIZE + 8)))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
