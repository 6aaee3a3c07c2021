"""The emoji data: pictures in memory, and batches that are a pure function of the samples' counters.

A picture has countless variants: recoloured or not, on white or on a colour. Variant 0 is the plain picture on white.
"""

from __future__ import annotations

import copy
import hashlib
import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator
from torch import Tensor

from distill.data.emoji.archive import DrawingRecord, read_archive
from distill.data.emoji.captions import Names, countable, name_concepts, read_common, say_background, short_noun, write_caption
from distill.data.emoji.recolor import BACKGROUNDS, COLOURS, composite, measure, recolour
from distill.data.emoji.references import EmojiReferencesConfig, references, subject_caption
from distill.data.emoji.scenes import (
    RELATIONS,
    DrawingScene,
    Placed,
    SceneConfig,
    arrange_count,
    arrange_pair,
    arrange_single,
    arrange_small,
    draw_scenes,
    has_mirror_image,
    scene_caption,
)
from distill.data.errors import DataError
from distill.types import Batch
from gen.io.weights import sha256
from gen.nn.registry import Config
from samplers.noise import fold

SHIPPED = Path(__file__).with_name("emoji.zip")
_CHUNK = 2
_COLOUR_NAMES, _BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)


class EmojiConfig(Config):
    """archives: files to read (none: the one that is shipped). size: side of the pictures. common_weight: share of samples
    from the everyday concepts of common.txt. variants: how many variants of a picture occur (none: no limit). recolor,
    background: share of variants with another colour, on a coloured background. drop_caption: share of empty captions.
    style: share of captions that name the style. scenes: drawings placed anew (none: as drawn). split: which drawings:
    held_out is one in ten, by a hash of the file's name, and train the others. references: pictures beside each sample, for
    the objective `reference` (none: no such)."""

    archives: tuple[str, ...] = ()
    size: int = Field(default=128, ge=8, le=1024)
    common_weight: float = Field(default=0.6, ge=0, le=1)
    variants: int | None = Field(default=None, ge=1)
    recolor: float = Field(default=0.35, ge=0, le=1)
    background: float = Field(default=0.15, ge=0, le=1)
    drop_caption: float = Field(default=0.1, ge=0, le=1)
    style: float = Field(default=0.5, ge=0, le=1)
    scenes: SceneConfig | None = None
    split: Literal["all", "train", "held_out"] = "all"
    references: EmojiReferencesConfig | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> EmojiConfig:
        if self.scenes is not None and self.references is not None:
            raise ValueError("scenes have no references; give one of the two")
        return self


@dataclass(frozen=True)
class Variant:
    """One look of picture `index`: its object's new colour, and the background's; None leaves the colour, or white."""

    index: int
    color: str | None = None
    background: str | None = None


def split_of(record: DrawingRecord) -> Literal["train", "held_out"]:
    """Whether a drawing is held out of training: one in ten by a hash of its file name, so that every archive agrees."""
    return "held_out" if hashlib.sha256(record.file_name.encode()).digest()[0] < 26 else "train"


class EmojiData:
    """A data source (see distill.data.Source). `pictures` (N, 4, size, size) uint8 RGBA; `records` describe them;
    `labels` (N,) are their concepts' indices in `concepts`; `common` are the everyday concepts' indices; `recolourable` says
    which pictures have variants in other colours."""

    def __init__(self, config: EmojiConfig | None = None, seed: int = 0):
        """Reads the archives; raises DataError where one cannot be used."""
        self.config, self.seed = config or EmojiConfig(), seed
        self.records: list[DrawingRecord] = []
        encoded: list[bytes] = []
        concepts: set[str] = set()
        for path in self.config.archives or (SHIPPED,):
            records, pictures, labels = read_archive(path)
            self.records += records
            encoded += pictures
            concepts.update(labels)
        kept = [i for i, record in enumerate(self.records) if self.config.split in ("all", split_of(record))]
        self.records, encoded = [self.records[i] for i in kept], [encoded[i] for i in kept]
        if not self.records:
            raise DataError("The archives hold no pictures; build them with `fewstep data build`.")
        self.concepts = sorted(concepts)
        position = {label: i for i, label in enumerate(self.concepts)}
        self.labels = torch.tensor([position[record.label] for record in self.records])

        common = read_common()
        self.common = sorted(position[label] for label in common if label in position)
        described = {r.label: (r.names, r.tags, r.keywords) for r in self.records}
        by_label = name_concepts(described, common)
        self.names: list[Names] = [by_label[record.label] for record in self.records]
        everyday = set(self.common)
        self._common = [i for i, label in enumerate(self.labels.tolist()) if label in everyday]
        self._other = [i for i, label in enumerate(self.labels.tolist()) if label not in everyday]

        native = self._decode(encoded)
        self.palette = measure(native)
        # people and hands keep their colour: another would read as a skin tone
        people = [record.group == "people-body" for record in self.records]
        self.recolourable: list[bool] = (self.palette.recolourable & ~torch.tensor(people)).tolist()
        self.pictures = self._resize(native)
        self.mirrored: list[bool] = [has_mirror_image(record) for record in self.records]
        self._group_by_style()

    def _decode(self, encoded: list[bytes]) -> Tensor:
        def decode(item: tuple[int, bytes]) -> np.ndarray:
            index, data = item
            try:
                with Image.open(BytesIO(data), formats=["WEBP"]) as image:
                    if max(image.size) > 1024 or image.size[0] != image.size[1]:
                        raise ValueError(f"it is {image.size[0]}x{image.size[1]}, not square or larger than 1024")
                    return np.array(image.convert("RGBA"))
            except (ValueError, OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                raise DataError(f"{self.records[index].file_name} is not a usable WebP picture: {error}.") from None

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for index, picture in enumerate(pool.map(decode, enumerate(encoded))):
                if index == 0:
                    pictures = torch.empty(len(encoded), 4, *picture.shape[:2], dtype=torch.uint8)
                if picture.shape[:2] != pictures.shape[2:]:
                    raise DataError(f"{self.records[index].file_name} has another size than the pictures before it.")
                pictures[index] = torch.from_numpy(picture).permute(2, 0, 1)
        return pictures

    def _resize(self, pictures: Tensor) -> Tensor:
        side, size = pictures.shape[-1], self.config.size
        if side == size:
            return pictures
        if side % size:
            raise DataError(f"size is {size}, but the pictures are {side} pixels wide; choose a divisor of {side}.")
        small = []
        for chunk in pictures.split(256):
            rgb, alpha = chunk[:, :3].float(), chunk[:, 3:].float()
            # colours are averaged by how opaque they are, or transparent pixels would darken the edges
            alpha_mean = F.avg_pool2d(alpha, side // size)
            colour = F.avg_pool2d(rgb * alpha, side // size) / alpha_mean.clamp_min(1e-3)
            small.append(torch.cat([colour, alpha_mean], 1).round_().clamp_(0, 255).to(torch.uint8))
        return torch.cat(small)

    def __len__(self) -> int:
        return len(self.records)

    def _group_by_style(self) -> None:
        """The pictures that samples are drawn from, and the everyday ones of them, by style: a pair has one style."""
        self._by_style: dict[str, list[int]] = {}
        for i in sorted([*self._common, *self._other]):
            self._by_style.setdefault(self.records[i].style, []).append(i)
        self._by_label: dict[int, list[int]] = {}
        for i in sorted([*self._common, *self._other]):
            self._by_label.setdefault(int(self.labels[i]), []).append(i)
        common = set(self._common)
        self._everyday_by_style = {style: [i for i in members if i in common] for style, members in self._by_style.items()}

    def split(self, share: float) -> tuple[EmojiData, EmojiData]:
        """(the rest, a share of the pictures), which draw their samples from these alone; a function of their names."""
        from distill.data.pictures import split_by

        taken, left = split_by(share, [record.file_name for record in self.records])
        parts = []
        for chosen in (set(left), set(taken)):
            parts.append(copy.copy(self))
            parts[-1]._common = [index for index in self._common if index in chosen]
            parts[-1]._other = [index for index in self._other if index in chosen]
            parts[-1]._group_by_style()
        return parts[0], parts[1]

    def digest(self) -> str:
        """A hash of the archives."""
        return hashlib.sha256(repr([sha256(path) for path in self.config.archives or (SHIPPED,)]).encode()).hexdigest()

    def choose(self, counters: Sequence[int]) -> list[tuple[int, int]]:
        """(picture index, variant number) of each sample: everyday concepts with `common_weight`, pictures alike within."""
        chosen = []
        for counter in counters:
            rng = random.Random(fold(self.seed, "choose", counter))
            everyday = rng.random() < self.config.common_weight
            pool = (self._common if everyday else self._other) or self._common or self._other
            chosen.append((pool[rng.randrange(len(pool))], rng.randrange(self.config.variants or 1 << 31)))
        return chosen

    def variant(self, index: int, k: int) -> Variant:
        """Variant k of a picture. It depends on which picture it is, not on the seed or on what else is loaded, so that
        encoded variants can be stored and used by other runs."""
        if k == 0:
            return Variant(index)
        rng = random.Random(fold(0, "variant", self.records[index].file_name, k))
        return self.variant_by(index, rng, self.config.recolor, self.config.background)

    def variant_by(self, index: int, rng: random.Random, recolor: float, background: float) -> Variant:
        """A variant of a picture by random numbers; recolor, background: how often it has another colour, a background."""
        wants_colour, wants_background = rng.random() < recolor, rng.random() < background
        color: str | None = rng.choice(_COLOUR_NAMES)
        behind: str | None = rng.choice(_BACKGROUND_NAMES)
        if not (wants_colour and self.recolourable[index]) or color in self.names[index].held_out:
            color = None
        # an object of the background's colour could not be seen, and white is the background by default
        while behind == (color or self.palette.names[index]):
            behind = rng.choice(_BACKGROUND_NAMES)
        if not wants_background and color != "white":
            behind = None
        return Variant(index, color, behind)

    def alike(self, index: int) -> list[int]:
        """The pictures of the same thing, that one among them, of those that samples are drawn from."""
        return self._by_label[int(self.labels[index])]

    def render(self, variants: Sequence[Variant]) -> Tensor:
        """The pictures (B, 3, size, size) float32 in [-1, 1]."""
        size = self.config.size
        out = torch.empty(len(variants), 3, size, size)
        # a few pictures at a time stay in the processor's cache, which makes this several times faster
        for start in range(0, len(variants), _CHUNK):
            self._render_into(out[start : start + _CHUNK], variants[start : start + _CHUNK])
        return out

    def _render_into(self, out: Tensor, variants: Sequence[Variant]) -> None:
        rgba = self.draw(variants)
        rgb, alpha = rgba[:, :3], rgba[:, 3:]
        out.copy_(composite(rgb, alpha, self.backgrounds([v.background for v in variants]))).mul_(2).sub_(1)

    def caption(self, variant: Variant, counter: int) -> str:
        """What sample `counter` calls a variant; empty with probability `drop_caption`."""
        rng = random.Random(fold(self.seed, "caption", counter))
        if rng.random() < self.config.drop_caption:
            return ""
        record, names = self.records[variant.index], self.names[variant.index]
        dominant = self.palette.names[variant.index] if self.recolourable[variant.index] else None
        return write_caption(names, record.style, dominant, variant.color, variant.background, self.config.style, rng)

    # ---- scenes ----

    def scene(self, counter: int) -> tuple[DrawingScene, str]:
        """What sample `counter` shows when drawings are placed anew, and its caption."""
        config = self.config.scenes
        assert config is not None
        rng = random.Random(fold(self.seed, "scene", counter))
        ((index, k),) = self.choose([counter])
        variant = self.variant(index, k)
        kind = rng.random()
        made: tuple[DrawingScene, str | None] | None = None
        if kind < config.pairs:
            made = self._pair(variant, rng)
        elif kind < config.pairs + config.counts:
            made = self._count(variant, rng)
        elif kind < config.total:
            size = rng.choice(("tiny", "small"))
            thing = arrange_small(index, variant.color, size, self._flip(index, rng), rng)
            made = self._described(DrawingScene((thing,), variant.background, size=size), rng)
        if made is not None and made[1] is not None:
            return made[0], "" if rng.random() < self.config.drop_caption else made[1]
        thing = arrange_single(index, variant.color, config, self._flip(index, rng), rng)
        return DrawingScene((thing,), variant.background), self.caption(variant, counter)

    def _flip(self, index: int, rng: random.Random) -> bool:
        return self.config.scenes is not None and rng.random() < self.config.scenes.flip and self.mirrored[index]

    def _pair(self, variant: Variant, rng: random.Random) -> tuple[DrawingScene, str | None]:
        """The thing of a variant and another of the same style."""
        alike = self._by_style[self.records[variant.index].style]
        everyday = self._everyday_by_style[self.records[variant.index].style]
        pool = everyday if everyday and rng.random() < 0.8 else alike
        other = self.variant(pool[rng.randrange(len(pool))], rng.randrange(1 << 31))
        relation = rng.choices(list(RELATIONS), [share for share, _ in RELATIONS.values()])[0]
        background = variant.background
        if background == (other.color or self.palette.names[other.index]):
            background = None  # the other thing could not be seen
        if "white" in (variant.color, other.color) and background is None:
            background = rng.choice([b for b in _BACKGROUND_NAMES if b not in self._colours(variant, other)])
        things = [(v.index, v.color) for v in (variant, other)]
        placed = arrange_pair(things[0], things[1], relation, [self._flip(i, rng) for i, _ in things], rng)
        if variant.index == other.index or self.labels[variant.index] == self.labels[other.index]:
            return DrawingScene(placed), None  # "a cat and a cat"
        return self._described(DrawingScene(placed, background, relation), rng)

    def _colours(self, *variants: Variant) -> set[str | None]:
        return {v.color or self.palette.names[v.index] for v in variants}

    def _count(self, variant: Variant, rng: random.Random) -> tuple[DrawingScene, str | None]:
        """One to four of a variant's thing; its caption is None where the thing is not counted."""
        count = rng.choices((1, 2, 3, 4), (0.1, 0.35, 0.35, 0.2))[0]
        things = arrange_count(variant.index, variant.color, count, self._flip(variant.index, rng), rng)
        return self._described(DrawingScene(things, variant.background, count=count), rng)

    def _described(self, scene: DrawingScene, rng: random.Random) -> tuple[DrawingScene, str | None]:
        things = scene.things if scene.relation else scene.things[:1]
        nouns = [short_noun(self.names[thing.index], thing.color, rng) for thing in things]
        if not all(countable(noun) for noun in nouns):
            return scene, None
        look = f", {self.records[things[0].index].style} style" if rng.random() < self.config.style else ""
        return scene, scene_caption(scene, nouns, say_background(scene.background, rng), look, rng)

    def draw(self, things: Sequence[Placed | Variant]) -> Tensor:
        """The drawings of things, in their colours: (M, 4, size, size) in [0, 1]."""
        index = torch.tensor([thing.index for thing in things])
        rgba = self.pictures[index].float().div_(255)
        coloured = {i: thing.color for i, thing in enumerate(things) if thing.color is not None}
        if coloured:
            rows, colours = list(coloured), list(coloured.values())
            rgba[rows, :3] = recolour(rgba[rows, :3], self.palette, index[rows], colours)
        return rgba

    def render_scenes(self, scenes: Sequence[DrawingScene]) -> Tensor:
        """The pictures (B, 3, size, size) float32 in [-1, 1]."""
        size = self.config.size
        parts = []
        for start in range(0, len(scenes), _CHUNK):
            chunk = scenes[start : start + _CHUNK]
            parts.append(draw_scenes(chunk, self.draw, self.backgrounds([s.background for s in chunk]), size))
        return torch.cat(parts).clamp_(0, 1).mul_(2).sub_(1)

    @staticmethod
    def backgrounds(names: Sequence[str | None]) -> Tensor:
        """(B, 3) in [0, 1]; None is white."""
        colours = [BACKGROUNDS[name] if name else (255, 255, 255) for name in names]
        return torch.tensor(colours).float().div_(255)

    def _scene_batch(self, numbers: list[int]) -> Batch:
        scenes, captions = zip(*(self.scene(counter) for counter in numbers), strict=True)
        first = [scene.things[0].index for scene in scenes]
        return Batch(
            index=torch.tensor(numbers), images=self.render_scenes(scenes), captions=list(captions), labels=self.labels[first]
        )

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        """Images, captions and concept indices of the samples with these counters."""
        numbers = [int(counter) for counter in counters]
        if self.config.scenes is not None:
            return self._scene_batch(numbers)
        variants = [self.variant(index, k) for index, k in self.choose(numbers)]
        captions = [self.caption(variant, counter) for variant, counter in zip(variants, numbers, strict=True)]
        extra: dict[str, Tensor] = {}
        if (shown := self.config.references) is not None:
            extra["references"], extra["present"] = references(self, shown, numbers, variants)
            rows = zip(captions, variants, numbers, strict=True)
            captions = [
                own and (subject_caption(shown, variant, self.records[variant.index].style, self.seed, counter) or own)
                for own, variant, counter in rows
            ]
        labels = self.labels[[variant.index for variant in variants]]
        return Batch(torch.tensor(numbers), self.render(variants), captions=captions, labels=labels, extra=extra)
