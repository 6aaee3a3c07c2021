"""`fewstep info`, `env`, `samplers` and `models`: their options. `gen.cli.show` and `gen.cli.models` do the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gen.cli.groups import grouped
from gen.cli.options import Device, Dtype, PartOptions, SizeOptions
from gen.cli.spoken import SpokenCommand


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    for command in (info, env, samplers, models):
        app.command(cls=SpokenCommand)(command)


@grouped
def info(
    *,
    picture: Annotated[str, typer.Argument(metavar="PICTURE|MODEL", help="A PNG, JPEG, WebP or GIF; or a model.")],
    json: Annotated[bool, typer.Option("--json", help="The recipe as JSON.")] = False,
    size: SizeOptions,
    batch_size: Annotated[int, typer.Option(help="Pictures per network call of a model.", min=1, max=1024)] = 1,
    parts: PartOptions,
    device: Device = None,
    dtype: Dtype = None,
) -> int:
    """Show the recipe in a picture, ours or AUTOMATIC1111's; or what memory a model needs for pictures of a size."""
    from gen.cli.show import info, is_model, model_memory

    if not is_model(picture):
        print(info(Path(picture), json))
    else:
        print(model_memory(picture, parts.arguments(), device, dtype, **size.keywords(), batch=batch_size))
    return 0


def env() -> None:
    """Show versions, devices and attention backends, and why one is not available."""
    from gen.cli.show import env

    print(env())


def samplers() -> None:
    """List the samplers, schedules, guidance rules and caches; one line each where another program reads them."""
    import shutil

    from gen.cli.show import samplers

    print(samplers(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


def models() -> None:
    """List the published sizes of the networks: parameters and operations."""
    from gen.cli.models import models

    print(models())
