"""A refiner on the command line: `--refiner` and `--refiner-at`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

Refiner = Annotated[
    str | None, typer.Option(metavar="MODEL", help="A folder, file or hub id that finishes the picture, as SDXL's refiner.")
]


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    refiner: Refiner = None
    refiner_at: Annotated[
        float | None, typer.Option(help="How much of the schedule is done before it, 0 to 1. [default: 0.8]")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return asdict(self)


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    refiner: Refiner = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return asdict(self)


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
