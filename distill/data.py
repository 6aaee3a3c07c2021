"""Where samples come from: a source gives the batch for any set of sample counters.

`python -m distill.data check CONFIG key=value ...` reads the data section of a training config, opens every picture, and says
what is kept, what is dropped, and why.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from distill.objective import Batch
from gen.cli.parser import Parser
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


# type name -> (module, config class, source class); imported when used
SOURCES: dict[str, tuple[str, str, str]] = {
    "emoji": ("distill.emoji.data", "EmojiConfig", "EmojiData"),
    "emoji_latents": ("distill.sources.emoji_latents", "EmojiLatentsConfig", "EmojiLatents"),
    "images": ("distill.sources.images", "ImagesConfig", "ImageFolder"),
    "webdataset": ("distill.sources.webdataset", "WebDatasetConfig", "WebDataset"),
    "huggingface": ("distill.sources.huggingface", "HuggingFaceConfig", "HuggingFace"),
    "prompts": ("distill.sources.prompts", "PromptsConfig", "Prompts"),
    "latents": ("distill.sources.latents", "LatentsConfig", "Latents"),
    "grouped": ("distill.sources.grouped", "GroupedConfig", "Grouped"),
}


def make_source(config: dict[str, Any], seed: int, batch_size: int | None = None) -> Source:
    """A source from its config, e.g. {"type": "emoji", "size": 64}; batch_size: the global one, for sources whose batches are
    of one shape each. Raises ValueError for an unknown type or key, and for data of which nothing can be kept."""
    source, checked = from_registry(SOURCES, "data source", config)
    made = source(checked, seed)
    return made.grouped(batch_size) if batch_size and hasattr(made, "grouped") else made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.data", description="Check a data set before training on it.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("check", help="say what is kept, what is dropped, and why")
    command.add_argument("config", help="a training config; its data section is read")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.size=512")
    given = parser.parse_args(arguments)
    from distill.command import config_first
    from distill.config import load_config

    try:
        config_first(given)
        config = load_config(given.config, given.overrides)
        source: Any = make_source(config.data, config.seed, config.batch_size)
        report = source.check() if hasattr(source, "check") else None
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print("\n".join(report.lines()) if report else f"{config.data['type']}: {len(source)} kept, 0 dropped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
