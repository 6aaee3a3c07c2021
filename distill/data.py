"""Where samples come from: a source gives the batch for any set of sample counters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from distill.objective import Batch
from gen.components import from_registry


class Source(Protocol):
    """A data set as a pure function of counters, so that a run resumes, and splits over processes, from numbers alone.

    A counter names one sample of a run, forever: the same counter gives the same picture, caption and noise, whatever else
    is in the batch. Counters run from 0 without end; a source repeats its pictures as it sees fit.
    """

    def __len__(self) -> int:
        """How many distinct pictures there are."""

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        """The samples with these counters (B,)."""


# type name -> (module, config class, source class); imported when used
SOURCES: dict[str, tuple[str, str, str]] = {
    "emoji": ("distill.emoji.data", "EmojiConfig", "EmojiData"),
    "emoji_latents": ("distill.cache", "LatentCacheConfig", "LatentCache"),
}


def make_source(config: dict[str, Any], seed: int) -> Source:
    """A source from its config, e.g. {"type": "emoji", "size": 64}. Raises ValueError for an unknown type or key."""
    source, checked = from_registry(SOURCES, "data source", config)
    return source(checked, seed)
