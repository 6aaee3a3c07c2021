"""Variations on the command line: `--variation-seed` and `--variation-strength`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`; named as the keywords of a call are."""

    variation_seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Turn the noise of --seed towards that of N; the next picture's towards N + 1."),
    ] = None
    variation_strength: Annotated[float | None, typer.Option(help="How far, 0 to 1. [default: 0.2]")] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return asdict(self)


IMAGE, REPLAY, COMMANDS = ImageOptions, None, ()
