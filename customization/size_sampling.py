"""Pictures at several sizes, a batch at one of them: sizes far from the model's own come more often (`ResAdapter`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from pydantic import Field
from torch import Tensor

from customization.data import ConceptConfig, ConceptData
from distill.types import Batch
from gen.generator import Generator
from gen.nn.registry import Config
from samplers.noise import fold


class SizesConfig(Config):
    """of: the pictures, without size. sizes: in pixels. base: the model's own, which no batch has; read from it if None."""

    of: ConceptConfig
    sizes: tuple[int, ...] = Field(min_length=1)
    base: int | None = Field(default=None, ge=8)


def shares(sizes: Sequence[int], base: int) -> list[float]:
    """p(x) = |x - s|^2 / sum_i |x_i - s|^2. ValueError where every size is the base."""
    squares = [(size - base) ** 2 for size in sizes]
    if not sum(squares):
        raise ValueError(f"All sizes are {base}, the model's own, at which there is nothing to learn; give others.")
    return [square / sum(squares) for square in squares]  # arXiv 2403.02084: p(x) = |x - s|^2 / sum_i |x_i - s|^2


class Sizes:
    """A data source (see distill.data.Source). Which size batch k has is a function of the seed and k."""

    def __init__(self, config: SizesConfig, seed: int, generator: Generator):
        if config.of.size is not None or config.of.buckets is not None or config.of.prior is not None:
            raise ValueError("Pictures of several sizes take neither size nor buckets nor prior of their own; leave those out.")
        self.seed = seed
        self.shares = shares(config.sizes, config.base or generator.config.sample_size)
        self.sources = [
            ConceptData(config.of.model_copy(update={"size": size}), seed, generator) if share else None
            for size, share in zip(config.sizes, self.shares, strict=True)
        ]
        self.taught = next(source for source in self.sources if source is not None)
        self.report = self.taught.report
        self.prior = None
        self.batch_size = 1

    def __len__(self) -> int:
        return len(self.taught)

    def digest(self) -> str:
        """A hash of the pictures."""
        return self.taught.digest()

    def caption(self, index: int) -> str:
        return self.taught.caption(index)

    def grouped(self, batch_size: int) -> Sizes:
        self.batch_size = batch_size
        for source in self.sources:
            if source is not None:
                source.grouped(batch_size)
        return self

    def chosen(self, batch: int) -> int:
        """The place of a batch's size."""
        u = fold(self.seed, "size", batch) % (1 << 30) / (1 << 30)
        return next(i for i, until in enumerate(accumulate(self.shares)) if u < until or i + 1 == len(self.shares))

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        source: Any = self.sources[self.chosen(int(counters[0]) // self.batch_size)]
        return source.batch(counters)
