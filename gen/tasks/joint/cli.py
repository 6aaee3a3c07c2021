"""Pictures with their maps on the command line: `--joint`, and `fewstep estimate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.lora import OpenOptions
from gen.cli.options import Negative, PlaceOptions, RuleOptions, SamplingOptions, SizeOptions
from gen.cli.output import make_and_save, say

KIND = "segments"  # that the default model draws
Folder = Annotated[
    Path | None,
    typer.Option("--joint-adapter", metavar="FOLDER", help="What joins the two. [default: the default model's own]"),
]
Picture = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture of which the map is drawn.")]


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    joint: Annotated[
        str | None,
        typer.Option(
            metavar="KIND[=FILE]", help="A map drawn with the picture: segments; or a given map, which it is drawn of."
        ),
    ] = None
    joint_picture: Picture = None
    joint_strength: Annotated[float | None, typer.Option(help="How much of the given one may change, 0 to 1. [default: 0]")] = (
        None
    )
    joint_scale: Annotated[float | None, typer.Option(help="Guidance of the join; 1 is none. [default: 1]")] = None
    joint_shown: Annotated[
        str | None, typer.Option(metavar="picture|map|both", help="What is saved. [default: what was not given, or both]")
    ] = None
    joint_adapter: Folder = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return with_map(asdict(self))


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    joint_map: Annotated[Path | None, typer.Option(metavar="FILE", help="The map that it was drawn of, if it was.")] = None
    joint_picture: Picture = None
    joint_adapter: Folder = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return asdict(self)


def with_map(values: dict[str, Any]) -> dict[str, Any]:
    """Keywords with the kind and the map of KIND=FILE apart."""
    kind, equals, file = (values["joint"] or "").partition("=")
    if equals and not file:
        raise ValueError(f"--joint {kind}= names no file; give {kind}=FILE, or {kind} alone to draw the map too.")
    return {**values, "joint": kind or None, "joint_map": Path(file) if file else None}


@grouped
def estimate(
    *,
    picture: Annotated[Path, typer.Argument(help="The picture (PNG, JPEG, WebP, ...).")],
    prompt: Annotated[str | None, typer.Option(help="What it shows, in quotes.")] = None,
    kind: Annotated[str, typer.Option(help="Of the map.")] = KIND,
    joint_scale: Annotated[float | None, typer.Option(help="Guidance of the join; 1 is none. [default: 1]")] = None,
    joint_adapter: Folder = None,
    sampling: SamplingOptions,
    negative: Negative = None,
    size: SizeOptions,
    rules: RuleOptions,
    model: OpenOptions,
    place: PlaceOptions,
) -> int:
    """Draw the map of a picture, such as its regions, by a model that knows both together; see docs/joint.md."""
    target = place.target()
    generator = model.opened(place)
    call = {"negative_prompt": negative, "joint_scale": joint_scale, "joint_adapter": joint_adapter}
    call |= {**size.keywords(), **sampling.keywords(), **rules.keywords()}
    label = f"{picture.stem}-{kind}"
    made, took = make_and_save(generator.estimate, target, label, place.quiet, picture, prompt, kind, **call)
    say(f"{kind} of {picture.name}, {made.recipes[0].num_inference_steps} steps, {took}", place.quiet)
    return 0


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, (estimate,)
