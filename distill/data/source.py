"""What a data source is: it gives the batch for any set of sample counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from distill.registry import SOURCES
from distill.types import Batch
from gen.nn.registry import from_registry


class Source(Protocol):
    """A data set as a pure function of counters, so that a run resumes, and splits over processes, from numbers alone.

    A counter names one sample of a run, forever: the same counter gives the same picture, caption and noise, whatever else
    is in the batch. Counters run from 0 without end; a source repeats its pictures as it sees fit.

    A source may have `grouped(batch_size)`, which tells it that counters k B to (k + 1) B - 1 are one batch;
    `check() -> Report`, which opens everything there is; `digest() -> str`, a hash of all the files that batches depend on, by
    which a run that goes on knows whether they are the same; and `split(share)`, two sources, of the pictures to train on
    and of those held out.
    """

    def __len__(self) -> int:
        """How many distinct pictures there are."""

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        """The samples with these counters (B,)."""


def make_source(config: dict[str, Any], seed: int, batch_size: int | None = None) -> Source:
    """A source from its config, e.g. {"type": "emoji", "size": 64}; batch_size: the global one, for sources whose batches are
    of one shape each. Raises ValueError for an unknown type or key, and for data of which nothing can be kept."""
    source, checked = from_registry(SOURCES, "data source", config)
    made = source(checked, seed)
    return made.grouped(batch_size) if batch_size and hasattr(made, "grouped") else made
