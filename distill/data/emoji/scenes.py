"""Scenes from single drawings: one moved a little, one small in a corner, two things side by side, up to four alike.

A drawing shows one thing in the middle of the picture. A network that sees nothing else learns neither "a cat and a dog" nor
"three apples", and remembers each drawing as it stands. A scene places drawings anew, each time differently, and a caption says
what it shows. Like a variant, a scene is a function of (seed, counter) and of nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from distill.data.emoji.archive import DrawingRecord
from distill.data.emoji.captions import MAX_WORDS, article, caption_length, pluralize
from gen.nn.registry import Config

# share of each arrangement of two things, and the words that say it: the first is at the place named
RELATIONS: dict[str, tuple[float, tuple[str, ...]]] = {
    "and": (0.40, ("and",)),
    "next to": (0.12, ("next to", "beside")),
    "left of": (0.14, ("left of", "to the left of")),
    "right of": (0.14, ("right of", "to the right of")),
    "above": (0.10, ("above", "over", "on top of")),
    "below": (0.10, ("below", "under", "beneath")),
}
NUMBERS = {1: ("one", "1", "a single"), 2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
SIZES = {"tiny": (0.22, 0.32), "small": (0.38, 0.52)}  # of the picture's side
SIZE_WORDS = {"tiny": ("tiny", "very small"), "small": ("small", "little")}
# of what reads from left to right, or is told apart by its side, there is no mirror image
HANDED = frozenset({
    *("book-paper", "mail", "writing", "office", "money", "music", "sound", "time", "game", "computer", "phone", "light-video"),
    *("place-map", "place-building", "place-other", "hotel", "event", "hand-prop", "hands", "hand-fingers-open"),
    *("hand-fingers-partial", "hand-fingers-closed", "hand-single-finger"),
})  # fmt: skip
HANDED_WORDS = ("left", "right", "hundred", "police", "ambulance", "fire engine", "medal", "zzz", "recycling", "chart")


class SceneConfig(Config):
    """pairs, counts, sizes: shares of samples with two things, with a number of one thing, with a tiny or small one; the rest
    shows one thing as drawn. flip: share of drawings mirrored, where they have a mirror image. shift: of single things, in
    sides of the picture. shrink: how much smaller, at most. turn: share of single things turned, by up to `degrees`."""

    pairs: float = Field(default=0.15, ge=0, le=1)
    counts: float = Field(default=0.10, ge=0, le=1)
    sizes: float = Field(default=0.05, ge=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    shift: float = Field(default=0.03, ge=0, le=0.5)
    shrink: float = Field(default=0.1, ge=0, lt=1)
    turn: float = Field(default=0.3, ge=0, le=1)
    degrees: float = Field(default=6.0, ge=0, le=180)

    @model_validator(mode="after")
    def _shares(self) -> SceneConfig:
        if self.pairs + self.counts + self.sizes > 1:
            raise ValueError(f"pairs, counts and sizes are shares of all samples, and sum to at most 1, not {self.total:.2f}")
        return self

    @property
    def total(self) -> float:
        return self.pairs + self.counts + self.sizes


@dataclass(frozen=True)
class Placed:
    """A drawing in a scene. x, y: its centre, in half sides from the middle of the picture (right and down); scale: its side
    in sides of the picture; degrees: turned clockwise; flip: mirrored."""

    index: int
    color: str | None = None
    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0
    degrees: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class DrawingScene:
    """Things on a background (None: white). relation: how the first of two stands to the second, a key of `RELATIONS`;
    count: how many of one thing (0: none was asked for); size: a key of `SIZES`."""

    things: tuple[Placed, ...]
    background: str | None = None
    relation: str | None = None
    count: int = 0
    size: str | None = None


def has_mirror_image(record: DrawingRecord) -> bool:
    """Whether a drawing may be mirrored without becoming wrong."""
    words = f" {record.label} "
    return record.subgroup not in HANDED and not any(f" {word}" in words for word in HANDED_WORDS)


def arrange_single(index: int, color: str | None, config: SceneConfig, mirrored: bool, rng: random.Random) -> Placed:
    """One thing nearly as it was drawn."""
    scale = 1 - config.shrink * rng.random()
    x, y = (rng.uniform(-2, 2) * config.shift for _ in range(2))
    degrees = rng.uniform(-1, 1) * config.degrees if rng.random() < config.turn else 0.0
    return Placed(index, color, x, y, scale, degrees, mirrored)


def arrange_small(index: int, color: str | None, size: str, mirrored: bool, rng: random.Random) -> Placed:
    """One tiny or small thing: in the middle in half of the scenes, else anywhere in the picture."""
    scale = rng.uniform(*SIZES[size])
    room = 0.0 if rng.random() < 0.5 else 1 - scale
    return Placed(index, color, rng.uniform(-room, room), rng.uniform(-room, room), scale, 0.0, mirrored)


def arrange_pair(
    first: tuple[int, str | None], second: tuple[int, str | None], relation: str, flips: Sequence[bool], rng: random.Random
) -> tuple[Placed, Placed]:
    """Two things, the first at the place that `relation` names."""
    scale = rng.uniform(0.46, 0.54)
    offset, across = rng.uniform(0.47, 0.53), rng.uniform(-0.12, 0.12)
    upright = relation in ("above", "below")
    sign = {"left of": -1, "right of": 1, "above": -1, "below": 1}.get(relation) or rng.choice((-1, 1))
    if relation == "and":  # read from left to right, nearly always
        sign = -1 if rng.random() < 0.9 else 1
    places = [(sign * offset, across), (-sign * offset, -across)]
    if upright:
        places = [(y, x) for x, y in places]
    things = zip((first, second), places, flips, strict=True)
    a, b = (Placed(i, color, x, y, scale, 0.0, flip) for (i, color), (x, y), flip in things)
    return a, b


def arrange_count(index: int, color: str | None, count: int, mirrored: bool, rng: random.Random) -> tuple[Placed, ...]:
    """`count` times the same thing, in a row or a block."""
    if count == 1:
        return (Placed(index, color, 0.0, 0.0, rng.uniform(0.85, 1.0), 0.0, mirrored),)
    if count == 2:
        layouts = [[(-0.5, 0.0), (0.5, 0.0)]]
    elif count == 3:
        layouts = [[(-0.5, 0.48), (0.5, 0.48), (0.0, -0.48)], [(-0.66, 0.0), (0.0, 0.0), (0.66, 0.0)]]
    else:
        layouts = [[(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]]
    places = rng.choice(layouts)
    row = count == 3 and places[0][1] == 0.0
    scale = rng.uniform(0.29, 0.33) if row else rng.uniform(0.42, 0.5)
    return tuple(Placed(index, color, x, y, scale, 0.0, mirrored) for x, y in places)


def scene_caption(scene: DrawingScene, nouns: Sequence[str], place: str, look: str, rng: random.Random) -> str | None:
    """What a scene shows. nouns: what each different thing is called, with its colour and without an article; place, look:
    what is said of background and style. None where it would not fit into `MAX_WORDS` words."""
    if scene.relation is not None:
        first, second = (f"{article(noun)} {noun}".strip() for noun in nouns)
        phrase = f"{first} {rng.choice(RELATIONS[scene.relation][1])} {second}"
    elif scene.count == 1:
        phrase = f"{rng.choice(NUMBERS[1])} {nouns[0]}"
    elif scene.count:
        phrase = f"{rng.choice(NUMBERS[scene.count])} {pluralize(nouns[0])}"
    else:
        word = rng.choice(SIZE_WORDS[scene.size or "small"])
        phrase = f"{article(word)} {word} {nouns[0]}"
    for caption in (phrase + place + look, phrase + place):
        if caption_length(caption) <= MAX_WORDS:
            return caption
    return None


def draw_scenes(
    scenes: Sequence[DrawingScene], pictures: Callable[[Sequence[Placed]], Tensor], backgrounds: Tensor, size: int
) -> Tensor:
    """The pictures (B, 3, size, size) in [0, 1]. `pictures` gives the drawings of things, (M, 4, h, w) in [0, 1] with alpha not
    multiplied in; backgrounds: (B, 3) in [0, 1]. Things that come later lie above."""
    out = backgrounds[:, :, None, None].expand(-1, -1, size, size).clone()
    depth = max(len(scene.things) for scene in scenes)
    for layer in range(depth):
        rows = [b for b, scene in enumerate(scenes) if len(scene.things) > layer]
        things = [scenes[b].things[layer] for b in rows]
        warped = warp(pictures(things), things, size)
        under = out[rows]
        out[rows] = under + warped[:, :3] - under * warped[:, 3:]
    return out


def warp(rgba: Tensor, things: Sequence[Placed], size: int) -> Tensor:
    """Drawings (M, 4, h, w) put where their things are: (M, 4, size, size), with alpha multiplied in."""
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    out = torch.empty(len(things), 4, size, size)
    # bilinear reading of every second pixel would leave gaps, so small things are read from a halved drawing
    halvings = [max(0, math.floor(math.log2(rgba.shape[-1] / (size * thing.scale)) + 0.25)) for thing in things]
    for level in sorted(set(halvings)):
        rows = [m for m, halving in enumerate(halvings) if halving == level]
        source = premultiplied[rows]
        for _ in range(level):
            source = F.avg_pool2d(source, 2)
        theta = torch.tensor([_inverse(things[m]) for m in rows], dtype=torch.float32)
        grid = F.affine_grid(theta, [len(rows), 4, size, size], align_corners=False)
        out[rows] = F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out


def _inverse(thing: Placed) -> list[list[float]]:
    """The affine map from a place in the scene to the place in the drawing that is seen there."""
    angle = math.radians(thing.degrees)
    c, s = math.cos(angle) / thing.scale, math.sin(angle) / thing.scale
    rows = [[c, s], [-s, c]]
    if thing.flip:
        rows[0] = [-value for value in rows[0]]
    return [[a, b, -(a * thing.x + b * thing.y)] for a, b in rows]
