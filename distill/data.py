"""Where training samples come from: the protocol of a data source, and the registry of those a config can name."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import ValidationError

from distill.objective import Batch
from gen.components import describe


class Source(Protocol):
    """An endless stream of samples, addressed by counter: sample i is a function of (seed, i) alone."""

    def batch(self, counters: Sequence[int]) -> Batch:
        """The samples with these counters, in this order."""
        ...


# type name -> (module, config class, source class); imported when used
SOURCES: dict[str, tuple[str, str, str]] = {
    "emoji": ("distill.emoji.data", "EmojiConfig", "EmojiData"),
    "emoji_latents": ("distill.cache", "LatentCacheConfig", "LatentCache"),
}


def make_source(config: dict[str, Any], seed: int) -> Source:
    """The source that `config["type"]` names."""
    config = dict(config)
    kind = config.pop("type", None)
    if kind not in SOURCES:
        near = difflib.get_close_matches(str(kind), SOURCES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"Unknown data source {kind!r}: {hint}Known: {', '.join(SOURCES)}.")
    module, config_class, source_class = SOURCES[kind]
    module = importlib.import_module(module)
    try:
        parsed = getattr(module, config_class)(**config)
    except ValidationError as error:
        raise ValueError(f"The {kind} data's config is not valid: {describe(error)}.") from None
    return getattr(module, source_class)(parsed, seed)
