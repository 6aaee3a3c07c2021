"""Edits on the command line: `--image`, `--mask` and `--strength`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A picture to start from, or to edit: PNG, JPEG, WebP, AVIF, GIF; repeatable where a model reads several.",
        ),
    ] = None
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="White is made anew, black stays as it is in --image.")] = (
        None
    )
    strength: Annotated[
        float | None, typer.Option(help="How much of --image is replaced, 0 to 1. [default: 0.8; 1 with a mask]")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return {**vars(self), "image": _one_or_several(self.image)}


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="The picture that it started from, if it did; repeatable, in the same order."),
    ] = None
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="The mask, likewise.")] = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return {**vars(self), "image": _one_or_several(self.image)}


def _one_or_several(images: list[Path] | None) -> Path | list[Path] | None:
    return images[0] if images and len(images) == 1 else images or None


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
