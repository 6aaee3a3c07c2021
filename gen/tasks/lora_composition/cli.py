"""Compositions on the command line: `--compose`, `--compose-option` and `--region`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.values import parse_options

Region = Annotated[
    list[str] | None,
    typer.Option(metavar="LORA=MASK", help="Where a LoRA acts: its name and a picture, white inside; repeatable."),
]


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    compose: Annotated[
        str | None, typer.Option(help="Several LoRAs: merge, switch, composite, contrast, cached. [default: merge]")
    ] = None
    compose_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the composition; repeatable.")] = (
        None
    )
    region: Region = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return {
            "composition": self.compose,
            "composition_options": parse_options(self.compose_option) if self.compose_option else None,
            "regions": regions_of(self.region),
        }


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    region: Region = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return {"regions": regions_of(self.region)}


def regions_of(specs: Sequence[str] | None) -> dict[str, Path] | None:
    """adapter -> mask of NAME=FILE specs; None without any."""
    regions: dict[str, Path] = {}
    for spec in specs or []:
        name, equals, file = spec.partition("=")
        if not equals or not name or not file or name in regions:
            raise ValueError(
                f"--region {spec!r}: write each LoRA's name once, then = and a picture, for example hero=left.png."
            )
        regions[name] = Path(file)
    return regions or None


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
