"""Where things go in a scene: a layout of boxes by rule, from their sizes, or from a file; and what it is in words.

Boxes are (left, top, width, height) as shares of the picture. A rule is a function of (aspect ratios, sizes, random numbers).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.io.errors import read_text
from samplers.lookup import nearest

Box = tuple[float, float, float, float]
RULES = ("row", "anywhere")
GROUND = 0.85  # where things in a row stand: the share of the height that is above it
OVERLAP = 0.15  # of the smaller box, that another may cover
TRIES = 200


def row(aspects: Sequence[float], sizes: Sequence[float], rng: random.Random) -> list[Box]:
    """Side by side on common ground in an order that is drawn, each as tall as its size says, filling the width they are given.

    aspects: width / height of each thing. sizes: heights, relative to one another.
    """
    order = list(range(len(aspects)))
    rng.shuffle(order)
    widths = [aspect * size for aspect, size in zip(aspects, sizes, strict=True)]
    gap = 0.06
    room = 1 - gap * (len(order) + 1)
    scale = min(room / sum(widths), 0.75 / max(sizes)) * rng.uniform(0.8, 1.0)
    slack = room - scale * sum(widths)
    shares = [rng.random() for _ in range(len(order) + 1)]
    boxes: list[Box] = [(0.0, 0.0, 0.0, 0.0)] * len(order)
    left = gap + slack * shares[0] / sum(shares)
    for place, i in enumerate(order):
        wide, tall = scale * widths[i], scale * sizes[i]
        boxes[i] = (left, min(GROUND + rng.uniform(-0.03, 0.1), 1.0) - tall, wide, tall)
        left += wide + gap + slack * shares[place + 1] / sum(shares)
    return boxes


def anywhere(aspects: Sequence[float], sizes: Sequence[float], rng: random.Random) -> list[Box]:
    """Anywhere in the picture, none covering more than a little of another: drawn until that is so, smaller each time."""
    scale = 0.7 / max(*sizes, *(a * s for a, s in zip(aspects, sizes, strict=True)), 1e-9)
    while True:
        boxes: list[Box] = []
        for aspect, size in zip(aspects, sizes, strict=True):
            for _ in range(TRIES):
                wide, tall = scale * size * aspect, scale * size
                box = (rng.uniform(0, 1 - wide), rng.uniform(0, 1 - tall), wide, tall)
                if all(_shared(box, other) <= OVERLAP for other in boxes):
                    boxes.append(box)
                    break
            else:
                break
        if len(boxes) == len(aspects):
            return boxes
        scale *= 0.9


def _shared(a: Box, b: Box) -> float:
    """The area that two boxes share, over that of the smaller one."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    tall = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(wide, 0) * max(tall, 0) / min(a[2] * a[3], b[2] * b[3])


def find_rule(name: str) -> Any:
    """A rule by name; ValueError for an unknown one."""
    if name not in RULES:
        near = nearest(name, RULES)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"There is no rule {name!r:.80}{hint} Known: {', '.join(RULES)}.")
    return {"row": row, "anywhere": anywhere}[name]


def fitted(box: Box, aspect: float) -> Box:
    """The largest box of an aspect ratio in the middle of another, on its lower edge."""
    left, top, wide, tall = box
    if wide / tall > aspect:
        return left + (wide - tall * aspect) / 2, top, tall * aspect, tall
    return left, top + tall - wide / aspect, wide, wide / aspect


@dataclass(frozen=True)
class SceneLayout:
    """One layout of a file: boxes by concept, the background, and a caption; None where nothing is said."""

    boxes: dict[str, Box]
    background: str | None = None
    caption: str | None = None


def read_scenes(path: Path, known: Sequence[str]) -> list[SceneLayout]:
    """Layouts of a YAML or JSON file, such as a language model writes: a list of {boxes: {NAME: [left, top, width, height]},
    background: TEXT, caption: TEXT}. ValueError says what is wrong with which."""
    import yaml

    try:
        rows = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML or JSON ({str(error).splitlines()[0]}).") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path} has no list of scenes; write - boxes: {{cat: [0.1, 0.4, 0.3, 0.5]}} for each.")
    return [_scene(path, number, values, known) for number, values in enumerate(rows, 1)]


def _scene(path: Path, number: int, values: Any, known: Sequence[str]) -> SceneLayout:
    where = f"{path}, scene {number}"
    if not isinstance(values, dict) or not isinstance(values.get("boxes"), dict) or not values["boxes"]:
        raise ValueError(f"{where} has no boxes; write boxes: {{cat: [0.1, 0.4, 0.3, 0.5]}}.")
    if unknown := next((key for key in values if key not in ("boxes", "background", "caption")), None):
        raise ValueError(f"{where} has {unknown!r:.80}; a scene has boxes, background and caption.")
    boxes: dict[str, Box] = {}
    for name, box in values["boxes"].items():
        if name not in known:
            near = nearest(str(name), known)
            hint = f"; did you mean {near!r}?" if near else "."
            raise ValueError(f"{where} places {name!r:.80}, which is no concept{hint} There are {', '.join(known)}.")
        numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        if not numbers or not (min(box) >= 0 < min(box[2:]) and box[0] + box[2] <= 1 + 1e-9 and box[1] + box[3] <= 1 + 1e-9):
            raise ValueError(
                f"{where}: the box of {name!r} is {box!r:.80}; give left, top, width, height as shares, inside 0 to 1."
            )
        boxes[str(name)] = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    for key in ("background", "caption"):
        if values.get(key) is not None and not isinstance(values[key], str):
            raise ValueError(f"{where}: {key} is {values[key]!r:.80}; give a text.")
    return SceneLayout(boxes, values.get("background"), values.get("caption"))


def caption_of(boxes: dict[str, Box], background: str) -> str:
    """What a scene shows, with things from left to right: "a cat, a dog and a <zib> on a beach"."""
    names = [with_article(name) for name in sorted(boxes, key=lambda name: boxes[name][0] + boxes[name][2] / 2)]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{listed} {background}".strip()


def with_article(name: str) -> str:
    """ "a cat", "an apple"; names that have one, and plurals said with a number, stay as they are."""
    first = name.split()[0].lower()
    if first in ("a", "an", "the", "two", "three", "four", "some"):
        return name
    return f"{'an' if name.lstrip('<')[:1].lower() in 'aeiou' else 'a'} {name}"
