"""Makes docs/layers.png: things with alpha upon other backgrounds, and a picture taken apart: python docs/make_layers_sheet.py

Rows: what the model draws; the same with alpha, upon a chequerboard, upon black and upon a colour; then such a thing upon a
gradient, what `decompose` finds in that picture, and what is behind.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gen import Generator
from gen.io.alpha import premultiply, upon
from gen.tasks.transparent.decompose import decompose

HERE = Path(__file__).parent
SIZE, GAP = 128, 8
PROMPTS = ("a red cat", "a wine glass", "a bicycle", "a tree", "a white rabbit on a blue background", "a soap bubble")
DARK, GREEN = (0.05, 0.05, 0.07), (0.35, 0.7, 0.45)


def plain(colour: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)


def chequered(side: int = 8) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return (0.75 + 0.2 * ((x // side + y // side) % 2)).expand(1, 3, -1, -1)


def gradient() -> Tensor:
    """From light blue above to sand below."""
    down = torch.linspace(0, 1, SIZE).view(1, 1, SIZE, 1)
    return torch.lerp(plain((0.55, 0.75, 0.95)), plain((0.9, 0.8, 0.6)), down)


def main(target: Path = HERE / "layers.png") -> None:
    generator = Generator.from_pretrained("fast", device="cpu", dtype="float32")
    call = {"seed": 1, "num_inference_steps": 4, "output_type": "pt", "progress": False}
    drawn = generator(list(PROMPTS), **call).images
    layers = premultiply(generator(list(PROMPTS), transparent=True, **call).images)
    rows = [drawn, *(upon(layers, behind) for behind in (chequered(), plain(DARK), plain(GREEN)))]
    apart = []
    for number in (0, 3, 4):
        picture = upon(layers[number : number + 1], gradient())
        found = decompose(generator, picture[0])
        apart += [picture, upon(found.layer.float(), chequered()), found.background.float()]
    rows += [torch.cat(apart[:6]), torch.cat([*apart[6:], *(torch.ones(1, 3, SIZE, SIZE),) * 3])]
    step = SIZE + GAP
    sheet = Image.new("RGB", (len(PROMPTS) * step - GAP, len(rows) * step - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            array = (picture.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
            sheet.paste(Image.fromarray(array), (x * step, y * step))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
