"""`fewstep sweep`: two or three settings against one another on one sheet; `gen.calls.sweep` does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gen.cli import complete
from gen.cli.options import AnyModel, CallOptions, Fast, Lora, MachineOptions, MethodOptions, PartOptions, Steps
from gen.cli.output import check_png, check_writable, exit_code, save_free, say, slug
from gen.cli.task_options import TaskGroup, add_command

if TYPE_CHECKING:
    from gen.calls.sweep import Sweep, SweepPicture


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    add_command(app, sweep, "IMAGE")


def sweep(
    *,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts, each in quotes, each with a sheet of its own.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            autocompletion=complete.varied,
            help="steps=4,8,20, guidance-scale=1-7:2, lora:NAME=0,.5,1, prompt:cat=dog,horse; once across, twice down, a third "
            "time a sheet each.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The sheet; the recipes go beside it, as JSON.")
    ] = Path("sweep.png"),
    cells: Annotated[Path | None, typer.Option(metavar="DIR", help="Save every picture too, with its recipe.")] = None,
    seed: Annotated[int, typer.Option(help="Of every picture, unless it is varied.")] = 0,
    steps: Steps = None,
    sampling: CallOptions,
    methods: MethodOptions,
    tasks: TaskGroup,
    lora: Lora = None,
    fast: Fast = None,
    model: AnyModel = None,
    parts: PartOptions,
    machine: MachineOptions,
) -> int:
    """Draw two or three settings against one another: a sheet with their values beside, every recipe kept."""
    from gen.calls.sweep import Sweep
    from gen.cli.choose import choose_model
    from gen.cli.image import add_energies

    machine.run_imports()
    check_png(output)
    if cells is not None:
        check_writable(cells / "x")
    call = {**sampling.keywords(), **methods.keywords(), **tasks.keywords(), "seed": seed, "num_inference_steps": steps}
    asked = Sweep.of(prompts or "", vary or [], call)
    for axis in asked.axes:
        if not axis.part and axis.keyword != "seed" and call.get(axis.keyword) is not None:
            raise ValueError(f"{axis.keyword} is one value, and --vary {axis.name} gives others; leave one of them out.")
    for_model = {"lora": lora or [], **parts.arguments()}
    if model is None:  # the teacher, where any of the pictures needs it
        names = {choose_model(None, fast, {**_choice(cell.call), **for_model}) for cell in asked.cells()}
        model = "fast" if names == {"fast"} else "default"
    else:
        choose_model(model, fast, {})

    from gen.generator import Generator

    generator = Generator.from_pretrained(model, machine.device, machine.dtype, **parts.arguments())
    add_energies(generator)
    if lora:
        from gen.cli.lora import load

        load(generator, lora, machine.quiet)
    if generator.text_encoder is not None and not any(cell.call["prompt"] for cell in asked.cells()):
        raise ValueError('No prompt was given; write one in quotes, for example: fewstep sweep "a red heart" --vary steps=4,8.')
    asked.check(generator)
    say(f"{asked.text}, by {generator.name}", machine.quiet)
    return _draw(asked, generator, output, cells, machine.quiet)


def _choice(call: Any) -> dict[str, Any]:
    """The keywords that say whether the few-step student can make a cell: all but its prompt."""
    return {name: value for name, value in call.items() if name != "prompt"}


def _draw(asked: Sweep, generator: Any, output: Path, folder: Path | None, quiet: bool) -> int:
    from tqdm import tqdm

    made: list[SweepPicture] = []
    stopped = 0
    with tqdm(total=asked.count, unit="picture", leave=False, disable=True if quiet else None) as bar:
        try:
            for one in asked.run(generator):
                made.append(one)
                if folder is not None:
                    name = f"{slug(one.recipe.prompt)[:40]}-{slug(asked.caption(one.cell))}.png"
                    print(save_free(one.image, folder / name, one.recipe), flush=True)
                bar.update()
        except KeyboardInterrupt as stop:
            stopped = exit_code(stop)
    if stopped:
        say(f"Interrupted; {len(made)} of {asked.count} pictures are on the sheet.", quiet)
    if not made:
        return stopped
    for sentence in asked.without_effect(made):
        say(f"Note: {sentence}", quiet)
    sheets = asked.sheets(made)
    for number, (_, sheet) in enumerate(sheets, 1):
        print(save_free(sheet, output if len(sheets) == 1 else output.with_stem(f"{output.stem}-{number}")), flush=True)
    print(_write_table(asked.table(made), output.with_suffix(".json")), flush=True)
    return stopped


def _write_table(table: dict[str, Any], path: Path) -> Path:
    """As JSON under the first free name, in one piece."""
    from gen.pipeline.png import free_name
    from samplers.atomic import written

    for _ in range(100):
        free = free_name(path)
        try:
            with written(free, overwrite=False) as temporary:
                temporary.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
            return free
        except FileExistsError:
            continue
    raise ValueError(f"{path}: no free name was found in 100 attempts; choose another with -o.")
