"""`fewstep ambiguous`: a picture of one thing that shows another when it is turned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.lora import OpenOptions
from gen.cli.options import Negative, PlaceOptions, RuleOptions, SamplingOptions, SizeOptions
from gen.cli.output import check_png, make_and_save, save_free, say


@grouped
def ambiguous(
    *,
    prompt: Annotated[str, typer.Argument(help="What the picture shows, in quotes.")],
    others: Annotated[list[str], typer.Argument(help="What it shows as each --view says, in quotes.")],
    view: Annotated[
        list[str] | None,
        typer.Option(help="rotate180, rotate90, rotate270, flip_vertical, flip_horizontal, transpose, negative; repeatable."),
    ] = None,
    pixels_from: Annotated[
        float | None, typer.Option(help="The log-SNR from which views agree as pictures, not latents. [default: -1.5]")
    ] = None,
    sampling: SamplingOptions,
    negative: Negative = None,
    size: SizeOptions,
    rules: RuleOptions,
    model: OpenOptions,
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of all views.")] = None,
    place: PlaceOptions,
) -> int:
    """Make a picture of one thing that shows another when it is turned upside down; see docs/regions.md."""
    target = place.target()
    sheet = None if grid is None else check_png(grid)
    views = view or ["rotate180"]

    from gen.tasks.views.task import view_of

    turns = [view_of(name) for name in views]
    generator = model.opened(place)
    call = {"pixels_from": pixels_from, "negative_prompt": negative, **size.keywords(), **sampling.keywords()}
    call |= rules.keywords()
    label = f"{prompt} {' '.join(others)}"
    result, took = make_and_save(generator.ambiguous, target, label, place.quiet, prompt, list(others), list(views), **call)
    say(f"{1 + len(turns)} views, {result.recipes[0].num_inference_steps} steps, {took}", place.quiet)
    if sheet is not None:
        print(save_free(_sheet(result, prompt, others, views), sheet), flush=True)
    return 0


def _sheet(result: Any, prompt: str, others: Sequence[str], views: Sequence[str]) -> Any:
    """Every picture as it is and as each view shows it."""
    import numpy as np
    import torch

    from gen.generator import to_pil
    from gen.io.contact_sheet import contact_sheet
    from gen.tasks.views.task import view_of

    images, captions = [], []
    for image, seed in zip(result.images, result.seeds, strict=True):
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        turned = torch.cat([view_of(name).there(picture) for name in views]) / 2 + 0.5
        images += [image, *to_pil(turned.permute(0, 2, 3, 1).numpy())]
        captions += [
            f"{prompt}\nseed {seed}",
            *(f"{other}\n{name}".replace("_", " ") for other, name in zip(others, views, strict=True)),
        ]
    return contact_sheet(images, captions)


IMAGE, REPLAY, COMMANDS = None, None, (ambiguous,)
