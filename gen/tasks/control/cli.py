"""Control on the command line: `--control`, `--controlnet` and how they act."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

Pictures = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="A picture to follow (edges, depth, pose); repeatable.")
]
Networks = Annotated[
    list[Path] | None,
    typer.Option("--controlnet", metavar="FOLDER", help="The ControlNet that reads it; one for each, or all."),
]


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    control: Pictures = None
    controlnet: Networks = None
    control_weight: Annotated[list[float] | None, typer.Option(help="How strongly; one for each. [default: 1]")] = None
    control_range: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Log-SNR levels at which it acts.")
    ] = None
    control_mode: Annotated[list[int] | None, typer.Option(help="Which control of a union; one for each.")] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return {name: value or None for name, value in vars(self).items()}


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    control: Pictures = None
    controlnet: Networks = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return {name: value or None for name, value in vars(self).items()}


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
