"""Samples in groups of one condition, for methods that compare samples within a group (inductive moment matching).

Counters k M to k M + M - 1 are sample k of another source: its caption and its class, dropped together where the source drops
them. Of pictures that share both, where it is known which do, a group has different ones; else its members are one picture
with noise of their own, which is all that there is of a caption that occurs once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from distill.data.latents import CachedPictures
from distill.data.pictures import PictureSource, stack
from distill.types import Batch
from gen.nn.registry import Config
from samplers.noise import fold


class GroupedConfig(Config):
    """source: the settings of a data source, its type included. size: M, samples of a group."""

    source: dict[str, Any]
    size: int = Field(default=4, ge=1)


class Grouped:
    """A data source (see distill.data.Source) over another."""

    def __init__(self, config: GroupedConfig, seed: int):
        from distill.data.source import make_source

        if config.source.get("type") == "grouped":
            raise ValueError("The source of groups is grouped itself; give the source of its samples.")
        self.config, self.seed = config, seed
        self.source: Any = make_source(config.source, seed)
        inner = self.source.source if isinstance(self.source, CachedPictures) else self.source
        self.pictures = inner if isinstance(inner, PictureSource) else None
        self.alike: dict[tuple, list[int]] = {}
        for index in range(len(self.pictures.items)) if self.pictures is not None else ():
            self.alike.setdefault(self._key(index), []).append(index)

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        """What else the source has: the names of its concepts, its report, a hash of its files."""
        if name in ("source", "__setstate__"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def grouped(self, batch_size: int) -> Grouped:
        """Tell buckets how many counters in a row are one batch."""
        if batch_size % self.config.size:
            raise ValueError(
                f"A batch of {batch_size} does not split into groups of {self.config.size}; use a multiple of that."
            )
        if hasattr(self.source, "grouped"):
            self.source.grouped(batch_size // self.config.size)
        return self

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        numbers = [int(counter) for counter in counters]
        groups = [number // self.config.size for number in numbers]
        made = self._members(numbers, groups) if self.pictures is not None else self.source.batch(groups)
        return replace(made, index=torch.tensor(numbers))

    def _members(self, numbers: Sequence[int], groups: Sequence[int]) -> Batch:
        assert self.pictures is not None
        chosen = [self._member(*divmod(number, self.config.size)) for number in numbers]
        if isinstance(self.source, CachedPictures):
            made = [self.source.latents(index) for index, _ in chosen]
            tensors = {"latents": stack([latents[k].float() for (_, latents), (_, k) in zip(made, chosen, strict=True)])}
        else:
            made = [self.pictures.variant(index, k) for index, k in chosen]
            tensors = {"images": stack([image for _, image in made])}
        return self.pictures.describe([(actual, 0) for actual, _ in made], groups, **tensors)

    def _member(self, group: int, number: int) -> tuple[int, int]:
        """(picture, variant) of member `number` of a group."""
        assert self.pictures is not None
        (index, k), *_ = self.pictures.choose([group])
        others = [other for other in self.alike[self._key(index)] if other != index]
        if not number:
            return index, k
        if others:
            index = random.Random(fold(self.seed, "group", group)).sample(others, len(others))[(number - 1) % len(others)]
        limit = self.pictures.config.variants or 1 << 31
        return index, fold(self.seed, "member", group, number) % limit

    def _key(self, index: int) -> tuple:
        """What all members of a group share: caption, class and shape."""
        assert self.pictures is not None
        item = self.pictures.items[index]
        return item.caption, item.label, self.pictures.bucket_of[index]
