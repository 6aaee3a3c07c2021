"""Makes docs/joint.png: pictures and their maps, by the default model's joint adapter: python docs/make_joint_sheet.py [FOLDER]

Rows: both drawn together (picture, map, twice); pictures of a map that is shown first; a picture, and the map drawn of it; a
coarse wish, by the strength. FOLDER: of another adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from gen import Generator

HERE = Path(__file__).parent
SIZE, STEPS = 128, 10
MAP = HERE / "examples" / "house_segments.png"


def halves(picture: Image.Image) -> list[Image.Image]:
    """The picture and the map of one that shows both."""
    return [picture.crop((0, 0, SIZE, SIZE)), picture.crop((SIZE, 0, 2 * SIZE, SIZE))]


def main(adapter: str | None = None, target: Path = HERE / "joint.png") -> None:
    generator = Generator.from_pretrained("default", device="cpu", dtype="float32")
    call = {"joint": "segments", "joint_adapter": adapter, "seed": 0, "num_inference_steps": STEPS, "progress": False}
    together = [half for prompt in ("a red heart", "a mushroom") for half in halves(generator(prompt, **call).images[0])]
    drawn = [generator(prompt, joint_map=MAP, **call).images[0] for prompt in ("a house", "a pink house", "a castle")]
    plain = generator(["a sunflower", "a rocket"], seed=1, num_inference_steps=STEPS, progress=False).images
    maps = [one for picture in plain for one in (picture, generator("", joint_picture=picture, **call).images[0])]
    coarse = [generator("a house", joint_map=MAP, joint_strength=r, **call).images[0] for r in (0.5, 0.8, 0.9)]
    given = Image.open(MAP).convert("RGB")
    rows = [together, [given, *drawn], maps, [given, *coarse]]
    sheet = Image.new("RGB", (4 * (SIZE + 8) - 8, len(rows) * (SIZE + 8) - 8), "white")
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * (SIZE + 8), row * (SIZE + 8)))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
