"""References beside a sample's picture: the same drawing in other colours, on other backgrounds, mirrored, or another vendor's
drawing of the same thing. Like a variant, what a sample is shown is a function of (seed, counter) and of nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from pydantic import Field
from torch import Tensor

from distill.data.emoji.captions import COLOUR_WORDS, say_background
from gen.nn.registry import Config
from samplers.noise import fold

if TYPE_CHECKING:
    from distill.data.emoji.data import Variant

WORD = "<ref>"  # what the prompt calls the pictures (`gen.nn.reference`)


class EmojiReferencesConfig(Config):
    """most: pictures that a sample is shown at most; from one upwards, all alike. other: share of them that are another drawing
    of the same thing. recolor: share of them in another colour, where the caption says the colour that is asked for; else they
    have it themselves. background: share of them on a coloured background. flip: share mirrored, of those that have a mirror
    image. named: share of captions in which the thing is called <ref>."""

    most: int = Field(default=1, gt=0, le=8)
    other: float = Field(default=0.2, ge=0, le=1)
    recolor: float = Field(default=0.5, ge=0, le=1)
    background: float = Field(default=0.3, ge=0, le=1)
    flip: float = Field(default=0.3, ge=0, le=1)
    named: float = Field(default=0.5, ge=0, le=1)


class Drawings(Protocol):
    """What references are drawn from: the emoji data."""

    seed: int
    mirrored: list[bool]
    recolourable: list[bool]

    def alike(self, index: int) -> list[int]:
        """The drawings of the same thing, that one among them."""

    def variant_by(self, index: int, rng: random.Random, recolor: float, background: float) -> Variant:
        """A look of a drawing."""

    def render(self, variants: Sequence[Variant]) -> Tensor:
        """(B, 3, size, size) in [-1, 1]."""


def references(
    data: Drawings, config: EmojiReferencesConfig, counters: Sequence[int], variants: Sequence[Variant]
) -> tuple[Tensor, Tensor]:
    """(pictures (B, N, 3, size, size) in [-1, 1], which of them are there (B, N) bool) beside samples of these variants."""
    shown: list[Variant] = []
    mirrored: list[bool] = []
    present = torch.zeros(len(counters), config.most, dtype=torch.bool)
    for row, (counter, target) in enumerate(zip(counters, variants, strict=True)):
        rng = random.Random(fold(data.seed, "references", counter))
        count = rng.randint(1, config.most)
        present[row, :count] = True
        for _ in range(config.most):  # as many draws for every sample
            others = [index for index in data.alike(target.index) if index != target.index]
            index = rng.choice(others) if rng.random() < config.other and others else target.index
            recolor = config.recolor if target.color is not None else 0.0
            shown.append(data.variant_by(index, rng, recolor, config.background))
            mirrored.append(rng.random() < config.flip and data.mirrored[index])
    pictures = data.render(shown)
    turned = torch.tensor(mirrored).view(-1, 1, 1, 1)
    pictures = torch.where(turned, pictures.flip(-1), pictures)
    return pictures.unflatten(0, (len(counters), config.most)), present


def subject_caption(config: EmojiReferencesConfig, variant: Variant, style: str, seed: int, counter: int) -> str | None:
    """What sample `counter` says of a variant without the thing's name; None where its own caption is to be used."""
    rng = random.Random(fold(seed, "reference caption", counter))
    if rng.random() >= config.named:
        return None
    noun = WORD
    if variant.color is not None:
        noun = f"{rng.choice(COLOUR_WORDS.get(variant.color, (variant.color,)))} {WORD}"
    phrase = rng.choice((f"a {noun}", f"a {noun}", noun, f"a picture of a {noun}"))
    look = f", {style} style" if rng.random() < 0.3 else ""
    return phrase + say_background(variant.background, rng) + look
