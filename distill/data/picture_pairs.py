"""Pictures of two domains A and B for translators: pairs, or two sources of which nothing is paired; and outlines.

A batch has B's pictures as images, with their captions and classes, and A's (B, 3, H, W) as `extra["source"]`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from distill.data.decode import MAX_BYTES, probe
from distill.data.drawn_edges import drawn_edges
from distill.data.errors import DataError
from distill.data.files import read_below, sha256_of
from distill.data.images import SUFFIXES, ImageFolder, ImagesConfig, walk
from distill.data.pictures import PictureItem, PictureSource
from distill.data.report import Unusable
from distill.types import SOURCE, Batch, Draws, pictures_of
from gen.nn.registry import Config
from samplers.noise import fold


class PairsConfig(ImagesConfig):
    """folder: B's pictures, with captions as of `images`. a: the folder of A's, in which the partner has the same name but for
    its ending. Without it A's are in the same folder, and suffixes says how two names differ: ["_edges", ""] pairs
    cat_edges.png of A with cat.png of B. Both pictures of a pair are cut and mirrored alike."""

    a: Path | None = None
    suffixes: tuple[str, str] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> PairsConfig:
        if self.buckets is not None:
            raise ValueError("pairs are of one shape: leave buckets out, and give size")
        if (self.a is None) == (self.suffixes is None):
            raise ValueError("give either a, the other folder, or suffixes, by which names in the one folder differ")
        if self.suffixes is not None and self.suffixes[0] == self.suffixes[1]:
            raise ValueError(f"suffixes are both {self.suffixes[0]!r}; give two that differ, such as ['_a', '_b']")
        return self


class Pairs(ImageFolder):
    """See the module. Items are B's pictures; the place of each is the name of A's."""

    config: PairsConfig

    def __init__(self, config: PairsConfig, seed: int):
        self.other = config.folder if config.a is None else config.a
        if not self.other.is_dir():
            raise DataError(f"{self.other} is not a folder; give the folder of the pictures that pairs begin with.")
        self._partners: dict[str, str] | None = None
        super().__init__(config, seed)

    def _arrange(self, items: Sequence[PictureItem]) -> None:
        if self._partners is None:
            self._partners = self._find_partners(items)
            items = [made for item in items if (made := self._paired(item)) is not None]
            self.report.kept = len(items)
            self.report.require_some()
        super()._arrange(items)

    def _find_partners(self, items: Sequence[PictureItem]) -> dict[str, str]:
        """B's name -> A's."""
        ends = self.config.suffixes or ("", "")
        others = {_stem(name): name for name in walk(self.other, self.report) if name.lower().endswith(SUFFIXES)}
        found = {}
        for item in items:
            stem = _stem(item.name)
            partner = others.get(stem.removesuffix(ends[1]) + ends[0]) if stem.endswith(ends[1]) else None
            if partner is not None and (self.config.a is not None or partner != item.name):
                found[item.name] = partner
        return found

    def _paired(self, item: PictureItem) -> PictureItem | None:
        """The item with its partner; None where there is none that can be used, which the report says."""
        assert self._partners is not None
        partner = self._partners.get(item.name)
        if partner is None:
            if item.name not in set(self._partners.values()) or self.config.a is not None:
                self.report.drop(item.name, "has no partner of the same name")
            return None
        try:
            data = read_below(self.other, partner, MAX_BYTES)
            probe(data, self.config.min_side)
        except Unusable as error:
            self.report.drop(f"{partner}, the partner of {item.name},", str(error))
            return None
        return replace(item, place=partner, digest=f"{item.digest} {sha256_of(data)}")

    def _from(self, index: int) -> Iterator[int]:
        yield index  # no other takes the place of half a pair

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        numbers = [int(counter) for counter in counters]
        first = copy.copy(self)  # A's pictures, seen as those of B are: the same variants by the same names
        first.read = lambda item: read_below(self.other, item.place, MAX_BYTES)
        made = super().batch(numbers)
        return replace(made, extra={**made.extra, SOURCE: PictureSource.batch(first, numbers).images})


def _stem(name: str) -> str:
    """The name without its ending, folders included."""
    path = PurePosixPath(name)
    return (path.parent / path.stem).as_posix()


class UnpairedConfig(Config):
    """a, b: the settings of two data sources of pictures, their types included, of the same size."""

    a: dict[str, Any] = Field(min_length=1)
    b: dict[str, Any] = Field(min_length=1)


class Unpaired:
    """A data source (see distill.data.Source) over two, each in an order of its own."""

    def __init__(self, config: UnpairedConfig, seed: int):
        from distill.data.source import make_source

        for name in ("a", "b"):
            if getattr(config, name).get("type") in ("unpaired", "pairs"):
                raise ValueError(f"{name} has two domains itself; give a source of one.")
        self.a: Any = make_source(config.a, fold(seed, "unpaired a"))
        self.source: Any = make_source(config.b, seed)
        first, second = self.a.batch([0]).images, self.source.batch([0]).images
        if first is None or second is None or first.shape != second.shape:
            shapes = ["no pictures" if one is None else "x".join(map(str, one.shape[1:])) for one in (first, second)]
            raise DataError(f"a gives {shapes[0]} and b {shapes[1]}; give two sources of pictures of one size.")

    def __len__(self) -> int:
        return len(self.source)

    def digest(self) -> str:
        """A hash of both."""
        return sha256_of(" ".join(one.digest() if hasattr(one, "digest") else "" for one in (self.a, self.source)).encode())

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        made = self.source.batch(counters)
        return replace(made, extra={**made.extra, SOURCE: self.a.batch(counters).images})


class OutlinesConfig(Config):
    """of: the settings of a data source of pictures, its type included. thick: share of them with lines three pixels wide."""

    of: dict[str, Any] = Field(min_length=1)
    thick: float = Field(default=0.4, ge=0, le=1)


class Outlines:
    """A data source (see distill.data.Source): the outlines of another's pictures, black on white, by thresholds of each
    sample's own. They have the captions and classes of what they are of, and those are `extra["source"]`, as of pairs."""

    def __init__(self, config: OutlinesConfig, seed: int):
        from distill.data.source import make_source

        self.config, self.seed = config, seed
        self.source: Any = make_source(config.of, seed)

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        """What else the source has: the names of its concepts, its report, a hash of its files."""
        if name in ("source", "__setstate__", "grouped", "split"):
            raise AttributeError(name)
        return getattr(self.source, name)

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        made = self.source.batch(counters)
        pictures = pictures_of(made)
        lines = drawn_edges((pictures + 1) / 2, Draws(self.seed, made.index, "outlines"), self.config.thick)
        return replace(made, images=1 - lines * 2, extra={**made.extra, SOURCE: pictures})
