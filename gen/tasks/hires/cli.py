"""Hires on the command line: `--hires 2` and its settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`; named as the keywords of a call are."""

    hires: Annotated[
        float | None, typer.Option(metavar="SCALE", help="Draw, enlarge so many times, and draw on: as hires fix.")
    ] = None
    hires_strength: Annotated[
        float | None, typer.Option(help="How much of the enlarged picture is made anew, 0 to 1. [default: 0.5; 0.3 in windows]")
    ] = None
    hires_steps: Annotated[int | None, typer.Option(help="Steps of the second pass. [default: those of the first]")] = None
    hires_upscaler: Annotated[
        str | None, typer.Option(metavar="picture|latent", help="What is enlarged. [default: picture]")
    ] = None
    hires_window: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Of windows in the second pass, 0 for none. [default: the model's own size]"),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return asdict(self)


IMAGE, REPLAY, COMMANDS = ImageOptions, None, ()
