"""`fewstep image` and `fewstep replay`: their options. `gen.cli.image` and `gen.cli.replay` do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen.cli import complete
from gen.cli.options import (
    AnyModel,
    CallOptions,
    Embedding,
    Fast,
    Import,
    Lora,
    MachineOptions,
    MethodOptions,
    ModelOption,
    Nonfinite,
    Output,
    PartOptions,
    PreviewDecoder,
    Quiet,
    TextEncoder,
    Vae,
    model_arguments,
)
from gen.cli.task_options import TaskGroup, add_command


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    add_command(app, image, "IMAGE")
    add_command(app, replay, "REPLAY")


def image(
    *,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts, each in quotes.")] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures per prompt.")] = 1,
    seed: Annotated[
        str | None,
        typer.Option(
            metavar="N|FROM-TO", help="The first picture's; the next get seed + 1, ... 1-16: a picture each. [default: random]"
        ),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N[,N...]", help="Sampling steps; all pictures with each. [default: the model's]")
    ] = None,
    step_policy: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A trained policy gives every prompt its number of steps; each begins with the seed."),
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Prompts, one a line, # before remarks; - is stdin.")
    ] = None,
    wildcards: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Read __name__ (a line of DIR/name.txt) and {a|b} in prompts, drawn by the seed."),
    ] = None,
    sampling: CallOptions,
    methods: MethodOptions,
    tasks: TaskGroup,
    lora: Lora = None,
    embedding: Embedding = None,
    allow_nonfinite: Nonfinite = False,
    fast: Fast = None,
    model: AnyModel = None,
    parts: PartOptions,
    show: Annotated[bool, typer.Option("--show", help="Show the pictures in the terminal too, where it can.")] = False,
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a contact sheet.")] = None,
    output: Output = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="png|jpg|webp|avif",
            help="Of the files. [default: as -o ends, else png]",
            autocompletion=complete.formats,
        ),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(help="Of jpg, webp and avif, 1 to 100; at 100 webp keeps every pixel. [default: 90]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per network call. [default: 8]")] = None,
    batch_invariant: Annotated[
        bool | None,
        typer.Option(
            "--batch-invariant/--no-batch-invariant", help="The same picture to the bit at any batch size. [default: on a CPU]"
        ),
    ] = None,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Keep the recipe in the file.")] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Say what memory it will need, and make nothing.")] = False,
    machine: MachineOptions,
) -> int:
    """Make pictures from prompts. Files are named after prompt and seed; nothing is overwritten."""
    from gen.calls.ranges import numbers
    from gen.cli.asked import asked
    from gen.cli.image import run

    machine.run_imports()
    counts = [None] if steps is None else numbers("--steps", steps)
    if step_policy is not None and (steps is not None or wildcards is not None):
        raise ValueError("--step-policy chooses the steps of every prompt itself: leave --steps and --wildcards out.")

    return run(
        asked(prompts or [], prompts_file, number, seed, wildcards, again=len(counts) > 1),
        steps=counts,
        typed=prompts_file is None,
        model=model,
        fast=fast,
        parts=parts.arguments(),
        tasks=tasks.keywords(),
        output=output,
        format=format,
        quality=quality,
        grid=grid,
        show=show,
        device=machine.device,
        dtype=machine.dtype,
        metadata=metadata,
        plan=plan,
        step_policy=step_policy,
        quiet=machine.quiet,
        lora=[*(lora or []), *(embedding or [])],
        **{**sampling.keywords(), **methods.keywords()},
        allow_nonfinite=allow_nonfinite,
        batch_size=batch_size,
        batch_invariant=batch_invariant,
    )


def replay(
    *,
    picture: Annotated[Path, typer.Argument(help="A picture with a fewstep recipe.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, or a folder. [default: NAME-replay.png beside it]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model, where it is not the default one.")] = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    preview_decoder: PreviewDecoder = None,
    model_option: ModelOption = None,
    device: Annotated[str | None, typer.Option(help="[default: the recipe's]")] = None,
    dtype: Annotated[str | None, typer.Option(help="[default: the recipe's]")] = None,
    tasks: TaskGroup,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A LoRA that it was made with; found by its content; repeatable.")
    ] = None,
    allow_nonfinite: Nonfinite = False,
    max_work: Annotated[
        float | None, typer.Option(help="Megapixel evaluations that the recipe may ask for. [default: 4000]")
    ] = None,
    import_: Import = None,
    quiet: Quiet = False,
) -> int:
    """Make the picture of a recipe again and compare. Exit code 1 if a pixel differs."""
    from gen.cli.replay import run
    from gen.io.user_code import import_files

    import_files(import_)

    return run(
        picture,
        output=output,
        model=model,
        parts=model_arguments(
            {"vae": vae, "text_encoder": text_encoder, "preview_decoder": preview_decoder, "model_options": model_option}
        ),
        tasks=tasks.keywords(),
        device=device,
        dtype=dtype,
        lora=lora or [],
        allow_nonfinite=allow_nonfinite,
        max_work=max_work,
        quiet=quiet,
    )
