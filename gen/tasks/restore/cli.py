"""`fewstep restore`: a damaged picture to ones that explain it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen.cli.groups import grouped
from gen.cli.lora import OpenOptions
from gen.cli.options import PlaceOptions, RuleOptions, SamplingOptions, SizeOptions
from gen.cli.output import check_png, make_and_save, save_free, say
from gen.cli.values import parse_options


@grouped
def restore(
    *,
    picture: Annotated[Path, typer.Argument(help="The damaged picture (PNG, JPEG, WebP, ...).")],
    prompt: Annotated[str | None, typer.Argument(help="What it shows, in quotes; helps much.")] = None,
    task: Annotated[str, typer.Option(help="inpaint, superres, colorize, deblur.")] = "superres",
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="For inpaint: white is made anew, black stays.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="factor, radius, noise, kind, weight, ...; repeatable.")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="The picture is whole; damage it first.")] = False,
    sampling: SamplingOptions,
    size: SizeOptions,
    rules: RuleOptions,
    model: OpenOptions,
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of before and after.")] = None,
    place: PlaceOptions,
) -> int:
    """Restore a picture: fill a hole, enlarge, give colour, sharpen."""
    target = place.target()
    sheet = None if grid is None else check_png(grid)
    options = parse_options(option or []) | ({"simulate": True} if simulate else {})

    from gen.generator import to_pil
    from gen.tasks.restore.task import check_task, make_restoration

    check_task(task, options)
    generator = model.opened(place)
    call = {"mask": mask, **size.keywords(), **options, **sampling.keywords(), **rules.keywords()}
    label = f"{picture.stem}-{task}"
    result, took = make_and_save(generator.restore, target, label, place.quiet, picture, task, prompt, **call)
    first = result.recipes[0]
    say(f"{task}, {first.num_inference_steps} steps, {took}", place.quiet)
    if sheet is not None:
        from gen.io.contact_sheet import contact_sheet

        restoration = make_restoration(task, picture, mask, options, first.height, first.width)
        before = to_pil(restoration.given.permute(0, 2, 3, 1).numpy())[0].resize((first.width, first.height), 0)
        captions = ["before", *(f"seed {seed}" for seed in result.seeds)]
        print(save_free(contact_sheet([before, *result.images], captions), sheet), flush=True)
    return 0


IMAGE, REPLAY, COMMANDS = None, None, (restore,)
