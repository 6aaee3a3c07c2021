"""Pipelines that run as a whole, on the command line: `--pipeline-option`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from gen.cli.values import parse_options


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    pipeline_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For a pipeline that runs as a whole; pictures as files; repeatable."),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return {"pipeline_options": parse_options(self.pipeline_option) if self.pipeline_option else None}


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    pipeline_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="A picture that the pipeline was given, likewise; repeatable.")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return {"pipeline_options": parse_options(self.pipeline_option) if self.pipeline_option else None}


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
