"""`fewstep restore`, `layout` and `ambiguous`: their options. A module named like the command does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen.cli.options import Device, Dtype, GuidanceScale, Height, Lora, Model, Negative, Output, Quiet, Sampler, Steps, Width


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    for command in (restore, layout, ambiguous):
        app.command()(command)


def restore(
    picture: Annotated[Path, typer.Argument(help="The damaged picture (PNG, JPEG, WebP, ...).")],
    prompt: Annotated[str | None, typer.Argument(help="What it shows, in quotes; helps much.")] = None,
    task: Annotated[str, typer.Option(help="inpaint, superres, colorize, deblur.")] = "superres",
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="For inpaint: white is made anew, black stays.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="factor, radius, noise, kind, weight, ...; repeatable.")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="The picture is whole; damage it first.")] = False,
    number: Annotated[int, typer.Option("--number", "-n", help="How many answers.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first one's seed. [default: random]")] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    guidance_scale: GuidanceScale = None,
    height: Height = None,
    width: Width = None,
    model: Model = "default",
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of before and after.")] = None,
    output: Output = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
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
        output=output,
        device=device,
        dtype=dtype,
        quiet=quiet,
        num_images_per_prompt=number,
        seed=seed,
        num_inference_steps=steps,
        sampler=sampler,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
    )


def layout(
    layout: Annotated[Path, typer.Argument(metavar="FILE", help="A layout (YAML, JSON), or a painting (PNG) with --colour.")],
    colour: Annotated[
        list[str] | None, typer.Option(metavar="COLOUR=PROMPT", help="What a painting's colour is; repeatable.")
    ] = None,
    background: Annotated[str | None, typer.Option(help="The prompt of what no region covers.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first one's seed. [default: random]")] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    guidance_scale: GuidanceScale = None,
    negative: Negative = None,
    lora: Lora = None,
    model: Model = "default",
    output: Output = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> int:
    """Make a picture with a prompt for every region; see docs/regions.md."""
    from gen.cli.layout import run

    return run(
        layout,
        colours=colour or [],
        background=background,
        lora=lora or [],
        model=model,
        output=output,
        device=device,
        dtype=dtype,
        quiet=quiet,
        num_images_per_prompt=number,
        seed=seed,
        num_inference_steps=steps,
        sampler=sampler,
        guidance_scale=guidance_scale,
        negative_prompt=negative,
    )


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
    number: Annotated[int, typer.Option("--number", "-n", help="How many pictures.")] = 1,
    seed: Annotated[int | None, typer.Option(help="The first one's seed. [default: random]")] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    guidance_scale: GuidanceScale = None,
    negative: Negative = None,
    height: Height = None,
    width: Width = None,
    lora: Lora = None,
    model: Model = "default",
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of all views.")] = None,
    output: Output = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
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
        output=output,
        device=device,
        dtype=dtype,
        quiet=quiet,
        num_images_per_prompt=number,
        seed=seed,
        num_inference_steps=steps,
        sampler=sampler,
        guidance_scale=guidance_scale,
        negative_prompt=negative,
        height=height,
        width=width,
    )
