"""`fewstep compare`: the same seeds through several samplers at several step counts, as one sheet and one table.

The distance is the root mean square difference of pixels, in [0, 1], from a reference: the same starting noise through many
steps of a deterministic sampler. Samplers that add noise go elsewhere, so theirs says how far, not how wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.calls.ranges import numbers, split_values
from gen.cli.groups import grouped
from gen.cli.options import GuidanceScale, MachineOptions, Model, PartOptions
from gen.cli.output import check_png, save_free, say
from gen.cli.spoken import SpokenCommand


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(compare)


@grouped
def compare(
    *,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT...", help="Prompts, each in quotes.")] = None,
    samplers: Annotated[str, typer.Option(help="Names with commas between; a name may include its schedule.")] = (
        "euler,heun,dpmpp_2m,dpmpp_3m,unipc,deis"
    ),
    schedules: Annotated[str | None, typer.Option(help="Each sampler on each of these. [default: the model's]")] = None,
    steps: Annotated[str, typer.Option(help="Step counts, with commas between.")] = "4,8,16,32",
    reference: Annotated[int, typer.Option(help="Steps of the reference that distances are measured to.")] = 200,
    seed: Annotated[int, typer.Option(help="The first picture's seed.")] = 0,
    guidance_scale: GuidanceScale = None,
    model: Model = "default",
    parts: PartOptions,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The sheet.")] = Path("compare.png"),
    machine: MachineOptions,
) -> int:
    """Compare samplers by step count: a sheet to look at, and distances to a fine reference."""
    machine.run_imports()

    from gen.io.validators import MAX_STEPS, check_int

    rows, counts = contenders(samplers, schedules), numbers("--steps", steps)
    check_int("--reference", reference, 1, MAX_STEPS)
    check_png(output)

    from gen.cli.image import subjects
    from gen.generator import Generator

    generator = Generator.from_pretrained(model, machine.device, machine.dtype, **parts.arguments())
    call = {**subjects(generator, prompts or []), "guidance_scale": guidance_scale, "seed": seed, "progress": False}
    truth = generator(**call, sampler="heun", schedule="uniform_time", num_inference_steps=reference, output_type="np").images

    from tqdm import tqdm

    distances: dict[tuple[Contender, int], float] = {}
    shown: list[tuple[Any, str]] = []
    with tqdm(total=len(rows) * len(counts), unit="sheet cell", disable=True if machine.quiet else None) as bar:
        for row in rows:
            for count in counts:
                made = generator(
                    **call, sampler=row.sampler, schedule=row.schedule, num_inference_steps=count, output_type="np"
                )
                distances[row, count] = float(((made.images - truth) ** 2).mean() ** 0.5)
                shown.append((made.images[0], f"{row.label}\n{count} steps, {made.nfe:g} evaluations"))
                bar.update()
    print(_table(rows, counts, distances, reference))

    from gen.generator import to_pil
    from gen.io.contact_sheet import contact_sheet

    images = [to_pil(image[None])[0] for image, _ in shown]
    path = save_free(contact_sheet(images, [caption for _, caption in shown], len(counts)), output)
    print(path, flush=True)
    say(f"Distances over {len(truth)} picture{'s' * (len(truth) > 1)}, seeds from {seed}.", machine.quiet)
    return 0


@dataclass(frozen=True)
class Contender:
    """A sampler on a schedule; None is the model's own schedule."""

    sampler: str
    schedule: str | None

    @property
    def label(self) -> str:
        return self.sampler if self.schedule is None else f"{self.sampler} {self.schedule}"


def contenders(labels: str, schedules: str | None) -> list[Contender]:
    """Those named in "euler, DPM++ 2M Karras", each on its own schedule if it names one, else on each of `schedules`."""
    from samplers.registry import grid_info, parse_sampler

    grids = [grid_info(name).name for name in split_values("--schedules", schedules)] if schedules else [None]
    rows = []
    for label in split_values("--samplers", labels):
        sampler, grid_name = parse_sampler(label)
        rows += [Contender(sampler, grid) for grid in ([grid_name] if grid_name else grids)]
    return list(dict.fromkeys(rows))


def _table(
    rows: Sequence[Contender], counts: Sequence[int], distances: dict[tuple[Contender, int], float], reference: int
) -> str:
    from gen.cli.show import table
    from samplers.registry import solver_info

    def name(row: Contender) -> str:
        return row.label + " (adds noise)" * solver_info(row.sampler).stochastic

    header = (f"distance to {reference} steps of heun", *(f"{count} steps" for count in counts))
    best = sorted(rows, key=lambda row: sum(distances[row, count] for count in counts))
    return table(header, [(name(row), *(f"{distances[row, count]:.4f}" for count in counts)) for row in best])
