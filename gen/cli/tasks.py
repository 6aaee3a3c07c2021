"""`fewstep restore`, `layout` and `ambiguous`: their options. A module named like the command does the work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.options import Device, Dtype, GuidanceScale, Height, Lora, Model, Negative, Output, Quiet, Sampler, Steps, Width


@dataclass(frozen=True)
class SamplingOptions:
    """How many pictures, and how they are sampled."""

    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures.")] = 1
    seed: Annotated[int | None, typer.Option(help="The first one's seed. [default: random]")] = None
    steps: Steps = None
    sampler: Sampler = None
    guidance_scale: GuidanceScale = None

    def keywords(self) -> dict[str, Any]:
        """As a call of a `Generator` takes them."""
        return {
            "num_images_per_prompt": self.number,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "sampler": self.sampler,
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True)
class PlaceOptions:
    """Where pictures are made and put."""

    output: Output = None
    device: Device = None
    dtype: Dtype = None
    quiet: Quiet = False


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    for command in (restore, layout, ambiguous):
        app.command()(command)


@grouped
def restore(
    picture: Annotated[Path, typer.Argument(help="The damaged picture (PNG, JPEG, WebP, ...).")],
    prompt: Annotated[str | None, typer.Argument(help="What it shows, in quotes; helps much.")] = None,
    task: Annotated[str, typer.Option(help="inpaint, superres, colorize, deblur.")] = "superres",
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="For inpaint: white is made anew, black stays.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="factor, radius, noise, kind, weight, ...; repeatable.")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="The picture is whole; damage it first.")] = False,
    sampling: SamplingOptions = SamplingOptions(),
    height: Height = None,
    width: Width = None,
    model: Model = "default",
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of before and after.")] = None,
    place: PlaceOptions = PlaceOptions(),
) -> int:
    """Restore a picture: fill a hole, enlarge, give colour, sharpen."""
    from gen.cli.restore import run

    return run(
        picture,
        prompt=prompt,
        task=task,
        mask=mask,
        options=option or [],
        simulate=simulate,
        model=model,
        grid=grid,
        **asdict(place),
        **sampling.keywords(),
        height=height,
        width=width,
    )


@grouped
def layout(
    layout: Annotated[Path, typer.Argument(metavar="FILE", help="A layout (YAML, JSON), or a painting (PNG) with --colour.")],
    colour: Annotated[
        list[str] | None, typer.Option(metavar="COLOUR=PROMPT", help="What a painting's colour is; repeatable.")
    ] = None,
    background: Annotated[str | None, typer.Option(help="The prompt of what no region covers.")] = None,
    sampling: SamplingOptions = SamplingOptions(),
    negative: Negative = None,
    lora: Lora = None,
    model: Model = "default",
    place: PlaceOptions = PlaceOptions(),
) -> int:
    """Make a picture with a prompt for every region; see docs/regions.md."""
    from gen.cli.layout import run

    return run(
        layout,
        colours=colour or [],
        background=background,
        lora=lora or [],
        model=model,
        **asdict(place),
        **sampling.keywords(),
        negative_prompt=negative,
    )


@grouped
def ambiguous(
    prompt: Annotated[str, typer.Argument(help="What the picture shows, in quotes.")],
    others: Annotated[list[str], typer.Argument(help="What it shows as each --view says, in quotes.")],
    view: Annotated[
        list[str] | None,
        typer.Option(help="rotate180, rotate90, rotate270, flip_vertical, flip_horizontal, transpose, negative; repeatable."),
    ] = None,
    pixels_from: Annotated[
        float | None, typer.Option(help="The log-SNR from which views agree as pictures, not latents. [default: -1.5]")
    ] = None,
    sampling: SamplingOptions = SamplingOptions(),
    negative: Negative = None,
    height: Height = None,
    width: Width = None,
    lora: Lora = None,
    model: Model = "default",
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of all views.")] = None,
    place: PlaceOptions = PlaceOptions(),
) -> int:
    """Make a picture of one thing that shows another when it is turned upside down; see docs/regions.md."""
    from gen.cli.ambiguous import run

    return run(
        prompt,
        others,
        views=view or [],
        pixels_from=pixels_from,
        lora=lora or [],
        model=model,
        grid=grid,
        **asdict(place),
        **sampling.keywords(),
        negative_prompt=negative,
        height=height,
        width=width,
    )
