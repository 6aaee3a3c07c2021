"""Makes docs/control.png: drawings, maps of regions, and pictures that follow them: python docs/make_control_sheet.py

The pictures to follow are drawn here, and written to docs/examples as well, to try `fewstep image --control` with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from gen import Generator

HERE = Path(__file__).parent
SIZE, LARGE = 128, 4  # drawn four times as large, then made smaller: smooth lines
Draw = ImageDraw.ImageDraw


def cat(pen: Draw) -> None:
    """The outline of a cat's head."""
    line(
        pen,
        [
            (30, 58),
            (34, 20),
            (54, 38),
            (74, 38),
            (94, 20),
            (98, 58),
            (100, 78),
            (88, 98),
            (64, 106),
            (40, 98),
            (28, 78),
            (30, 58),
        ],
    )
    for x in (48, 80):
        pen.ellipse(scaled(x - 5, 60, x + 5, 72), outline="black", width=2 * LARGE)
    line(pen, [(60, 80), (68, 80), (64, 85), (60, 80)])


def car(pen: Draw) -> None:
    """The outline of a car from the side."""
    line(pen, [(10, 84), (12, 64), (36, 58), (50, 38), (84, 38), (100, 60), (118, 66), (118, 84), (10, 84)])
    line(pen, [(44, 58), (54, 44), (66, 44), (66, 58), (44, 58)])
    line(pen, [(72, 58), (72, 44), (82, 44), (92, 58), (72, 58)])
    for x in (36, 94):
        pen.ellipse(scaled(x - 12, 72, x + 12, 96), outline="black", fill="white", width=2 * LARGE)


def mushroom(pen: Draw) -> None:
    """A cap, its spots and a stem, as regions."""
    pen.rectangle(scaled(48, 60, 80, 112), fill="#f0e0c0")
    pen.pieslice(scaled(16, 16, 112, 116), 180, 360, fill="#c03030")
    for x, y in ((40, 44), (64, 30), (88, 46)):
        pen.ellipse(scaled(x - 9, y - 8, x + 9, y + 8), fill="#ffffe0")


def house(pen: Draw) -> None:
    """Walls, a roof, a door and windows, as regions."""
    pen.rectangle(scaled(24, 60, 104, 112), fill="#e8c080")
    pen.polygon([point(14, 62), point(64, 18), point(114, 62)], fill="#b04030")
    pen.rectangle(scaled(54, 80, 74, 112), fill="#604020")
    for x in (34, 82):
        pen.rectangle(scaled(x, 70, x + 13, 84), fill="#70b0e0")


def point(x: float, y: float) -> tuple[float, float]:
    return x * LARGE, y * LARGE


def scaled(*box: float) -> list[float]:
    return [value * LARGE for value in box]


def line(pen: Draw, points: list[tuple[int, int]]) -> None:
    pen.line([point(*p) for p in points], fill="black", width=2 * LARGE, joint="curve")


ROWS: list[tuple[str, Callable[[Draw], None], str, tuple[str, str, str]]] = [
    ("edges", cat, "white", ("a red cat", "a panda", "a blue robot on a yellow background")),
    ("edges", car, "white", ("a purple car", "a taxi", "a green car on a pink background")),
    ("segments", mushroom, "#88aa88", ("a mushroom", "a blue mushroom on a yellow background", "an umbrella")),
    ("segments", house, "#ffffff", ("a house", "a pink house", "a castle")),
]


def main(target: Path = HERE / "control.png") -> None:
    generator = Generator.from_pretrained("default", device="cpu", dtype="float32")
    sheet = Image.new("RGB", (4 * (SIZE + 8) - 8, len(ROWS) * (SIZE + 8) - 8), "white")
    for row, (kind, draw, paper, prompts) in enumerate(ROWS):
        large = Image.new("RGB", (SIZE * LARGE,) * 2, paper)
        draw(ImageDraw.Draw(large))
        # regions keep their colours apart, lines become smooth
        shown = large.resize((SIZE, SIZE), Image.Resampling.NEAREST if kind == "segments" else Image.Resampling.LANCZOS)
        shown.save(HERE / "examples" / f"{draw.__name__}_{kind}.png", optimize=True)
        made = generator(list(prompts), control={kind: shown}, seed=0, progress=False).images
        for column, picture in enumerate((shown, *made)):
            sheet.paste(picture, (column * (SIZE + 8), row * (SIZE + 8)))
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
