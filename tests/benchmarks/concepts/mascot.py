"""`python -m tests.benchmarks.concepts.mascot FOLDER`: a subject that no model has seen, drawn by program, free for any use.

The zib: a turquoise triangle with rounded corners, one eye, a magenta ball on a stalk and two magenta feet. Written are

    train/       ten pictures with captions, softly shaded, without outlines
    held_out/    others, half of them flat and with black outlines, as the subject looks in that style
    look_alikes/ what is not a zib: another body or colour, two eyes or none, or neither ball nor feet; half of them outlined

A picture is a function of its folder and number.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from distill.data.emoji.recolor import BACKGROUNDS
from gen.io.contact_sheet import write_png
from gen.io.weights import write_bytes
from samplers.noise import fold

WORD = "<zib>"
SIZE, FINE = 128, 4  # pixels; drawn larger by this factor
TURQUOISE, MAGENTA, WHITE, INK = (34, 184, 176), (214, 46, 140), (255, 255, 255), (24, 28, 44)
LINE, ROUND = 0.024, 0.075  # width of outlines, radius of corners; of the figure's side
BODIES = {
    "triangle": [(0.5, 0.32), (0.18, 0.79), (0.82, 0.79)],
    "square": [(0.27, 0.33), (0.73, 0.33), (0.73, 0.79), (0.27, 0.79)],
    "upside down": [(0.5, 0.81), (0.18, 0.34), (0.82, 0.34)],
    "round": [(0.5 + 0.27 * math.sin(i * math.pi / 30), 0.55 + 0.25 * math.cos(i * math.pi / 30)) for i in range(60)],
}
EYES: dict[int, tuple[float, ...]] = {0: (), 1: (0.5,), 2: (0.39, 0.61)}
OTHER_COLOURS = ((240, 150, 40), (120, 90, 210), (90, 175, 70), (235, 205, 60), (214, 60, 60))
ON = ("blue", "yellow", "pink", "light blue", "orange", "purple", "green")
TRAIN = (None, "blue", None, "yellow", None, "pink", None, "light blue", None, "orange")


@dataclass(frozen=True)
class Look:
    """One picture. scale: of the figure, to the picture's side; x, y: of its middle, in [-1, 1] of the room that is left; turn
    and gaze: degrees; background: a name of `BACKGROUNDS`, None is white."""

    scale: float = 0.9
    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    gaze: float = 0.0
    background: str | None = None
    outlined: bool = False
    body: str = "triangle"
    colour: tuple[int, int, int] = TURQUOISE
    eyes: int = 1
    limbs: bool = True

    @property
    def caption(self) -> str:
        return f"a {WORD} on a {self.background} background" if self.background else f"a {WORD}"


def draw(look: Look, size: int = SIZE) -> Image.Image:
    """The picture (RGB, size x size)."""
    side, edge = size * FINE, INK if look.outlined else None
    figure = Image.new("RGBA", (side, side), (*(BACKGROUNDS[look.background] if look.background else WHITE), 0))
    pen = ImageDraw.Draw(figure)

    def ellipse(
        x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int], edge: tuple[int, int, int] | None
    ) -> None:
        box = [(x - rx) * side, (y - ry) * side, (x + rx) * side, (y + ry) * side]
        pen.ellipse(box, fill, edge, round(LINE * side) if edge else 0)

    if look.limbs:
        for x in (0.36, 0.64):
            ellipse(x, 0.9, 0.11, 0.07, MAGENTA, edge)
        pen.line([(0.5 * side, 0.12 * side), (0.5 * side, 0.32 * side)], edge or MAGENTA, round(0.035 * side))
        ellipse(0.5, 0.105, 0.08, 0.08, MAGENTA, edge)
    if look.outlined:
        figure.paste(INK, mask=_body(look.body, side, ROUND))
        figure.paste(look.colour, mask=_body(look.body, side, ROUND - LINE))
    else:
        figure.paste(_shaded(look.colour, side), mask=_body(look.body, side, ROUND))
    wide, angle = 0.145 if look.eyes == 1 else 0.095, math.radians(look.gaze)
    for x in EYES[look.eyes]:
        ellipse(x, 0.6, wide, wide, WHITE, edge)
        ellipse(x + 0.3 * wide * math.cos(angle), 0.6 + 0.3 * wide * math.sin(angle), wide / 2, wide / 2, INK, None)
    small = round(size * look.scale)
    figure = figure.rotate(look.turn, Image.Resampling.BICUBIC).resize((small, small), Image.Resampling.BOX)
    page = Image.new("RGBA", (size, size), BACKGROUNDS[look.background] if look.background else WHITE)
    room = (size - small) / 2
    page.alpha_composite(figure, (round(room * (1 + look.x)), round(room * (1 + look.y))))
    return page.convert("RGB")


def _body(name: str, side: int, radius: float) -> Image.Image:
    """The body's mask: a polygon grown by a circle, so that corners are round."""
    mask = Image.new("L", (side, side))
    pen, points = ImageDraw.Draw(mask), [(x * side, y * side) for x, y in BODIES[name]]
    pen.polygon(points, 255)
    r = radius * side
    for (x, y), after in zip(points, [*points[1:], points[0]], strict=True):
        pen.line([(x, y), after], 255, round(2 * r))
        pen.ellipse([x - r, y - r, x + r, y + r], 255)
    return mask


def _shaded(colour: tuple[int, int, int], side: int) -> Image.Image:
    """The colour, lighter above and darker below."""
    column = Image.new("RGB", (1, side))
    for y in range(side):
        light = 1.2 - 0.45 * y / side
        column.putpixel((0, y), tuple(min(255, round(c * light)) for c in colour))
    return column.resize((side, side))


def _placed(look: Look, rng: random.Random) -> Look:
    return replace(
        look,
        scale=rng.uniform(0.72, 0.98),
        x=rng.uniform(-0.8, 0.8),
        y=rng.uniform(-0.8, 0.8),
        turn=rng.uniform(-10, 10),
        gaze=rng.uniform(0, 360),
    )


def looks(folder: str, count: int) -> list[Look]:
    """The pictures of one of the three folders."""
    found = []
    for i in range(count):
        rng = random.Random(fold(0, folder, i))
        if folder == "train":
            look = Look(background=TRAIN[i % len(TRAIN)])
        else:
            background = rng.choice(ON) if rng.random() < 0.5 else None
            look = Look(background=background, outlined=i % 2 == 1)
        if folder == "look_alikes":
            look = replace(look, **_other(i // 2, rng))
        found.append(_placed(look, rng))
    return found


def _other(kind: int, rng: random.Random) -> dict:
    """What makes a look-alike of a zib, in turn."""
    ways: tuple[dict, ...] = (
        {"body": rng.choice([body for body in BODIES if body != "triangle"])},
        {"colour": rng.choice(OTHER_COLOURS)},
        {"eyes": rng.choice([0, 2])},
        {"limbs": False},
    )
    return ways[kind % len(ways)]


def write(folder: Path, counts: dict[str, int]) -> None:
    """Pictures as PNG, with their captions beside them where they are to be learned."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, look in enumerate(looks(name, count)):
            write_png(draw(look), folder / name / f"{i:03d}.png")
            if name == "train":
                write_bytes(folder / name / f"{i:03d}.txt", f"{look.caption}\n".encode())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.concepts.mascot", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--look-alikes", type=int, default=160)
    given = parser.parse_args(arguments)
    write(given.folder, {"train": len(TRAIN), "held_out": given.held_out, "look_alikes": given.look_alikes})
    print(f"{given.folder}: {len(TRAIN)} pictures to learn, {given.held_out} held out, {given.look_alikes} look-alikes.")


if __name__ == "__main__":
    main()
