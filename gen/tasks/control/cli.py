"""Control on the command line: `--control`, `--controlnet` and how they act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.models.control_names import NAMED

Pictures = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="[NAME=]FILE", help="A picture to follow: edges=FILE, segments=FILE, or a FILE for --controlnet; repeatable."
    ),
]
Networks = Annotated[
    list[Path] | None,
    typer.Option("--controlnet", metavar="FOLDER", help="The ControlNet that reads it; one for each, or all."),
]


def named_controls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords with pictures and networks apart where pictures are given as NAME=FILE; networks are of those without a name."""
    keywords = {name: value or None for name, value in values.items()}
    pictures, networks = keywords["control"] or [], list(keywords["controlnet"] or [])
    parts = [str(picture).partition("=") for picture in pictures]
    named = [part[0] in NAMED and part[1] == "=" and not file.exists() for part, file in zip(parts, pictures, strict=True)]
    if not any(named):
        return keywords
    unnamed = named.count(False)
    networks *= unnamed if len(networks) == 1 and unnamed else 1
    if len(networks) != unnamed:
        raise ValueError(
            f"{unnamed} of the pictures of --control have no name, and --controlnet has {len(networks)} folders; give a folder "
            "for each picture that has no name, and for those alone."
        )
    rest = iter(networks)
    keywords["controlnet"] = [part[0] if has else next(rest) for has, part in zip(named, parts, strict=True)]
    keywords["control"] = [Path(part[2]) if has else file for has, part, file in zip(named, parts, pictures, strict=True)]
    return keywords


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
        return named_controls(vars(self))


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    control: Pictures = None
    controlnet: Networks = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return named_controls(vars(self))


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
