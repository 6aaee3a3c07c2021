"""References on the command line: `--reference` and how it acts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.values import parse_options

Pictures = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        help="A picture to resemble; <ref> in the prompt stands for it. Repeatable: all together.",
    ),
]
Masks = Annotated[
    list[Path] | None,
    typer.Option("--reference-mask", metavar="FILE", help="Where a --reference counts (white); one for each."),
]
Encoder = Annotated[
    Path | None,
    typer.Option("--reference-encoder", metavar="FOLDER", help="What reads them. [default: the default model's own]"),
]
Vision = Annotated[
    str | None,
    typer.Option("--reference-vision", metavar="FOLDER|ID", help="CLIP's vision network, for an encoder that reads it."),
]


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    references: Pictures = None
    references_mask: Masks = None
    references_encoder: Encoder = None
    references_vision: Vision = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay; lists of nothing ask nothing."""
        return {name: None if value == [] else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class ImageOptions(ReplayOptions):
    """Of `fewstep image`: how strongly and where in the schedule too, which a recipe holds."""

    references_scale: Annotated[
        list[float] | None, typer.Option("--reference-scale", help="How strongly; one for all or for each. [default: 1]")
    ] = None
    references_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--reference-range", metavar="LOW HIGH", help="Log-SNR levels at which they act."),
    ] = None
    references_fusion: Annotated[
        int | None, typer.Option("--reference-fusion", metavar="MOVES", help="Of fusion sampling before each step.")
    ] = None
    references_fusion_option: Annotated[
        list[str] | None,
        typer.Option("--reference-fusion-option", metavar="NAME=VALUE", help="eta, guidance or scale of it; repeatable."),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        values = super().keywords()
        options = parse_options(values.pop("references_fusion_option") or [])
        return {**values, "references_fusion_options": options or None}


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
