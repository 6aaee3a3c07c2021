"""`fewstep batch`: a table of prompts to pictures, which goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.options import (
    GuidanceScale,
    Lora,
    LoraDir,
    MachineOptions,
    MethodOptions,
    Negative,
    PartOptions,
    PromptSyntax,
    Sampler,
    SizeOptions,
    Steps,
)
from gen.cli.output import exit_code, say
from gen.cli.spoken import SpokenCommand
from gen.io.errors import printable

if TYPE_CHECKING:
    from gen.batch.rows import BadRow


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(batch)


@grouped
def batch(
    *,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Rows: .txt, .csv, .tsv, .jsonl, .parquet; a folder or hf:NAME of datasets; - is standard input.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The batch's own folder.")],
    column: Annotated[
        list[str] | None, typer.Option(metavar="KEYWORD=COLUMN", help="The column that has it: prompt=caption; repeatable.")
    ] = None,
    extra: Annotated[bool, typer.Option("--extra", help="Carry other columns along, for --name and records.")] = False,
    wildcards: Annotated[Path | None, typer.Option(metavar="DIR", help="Files that __name__ in prompts draws from.")] = None,
    combinatorial: Annotated[bool, typer.Option("--combinatorial", help="Every prompt of {a|b} and __name__.")] = False,
    templates: Annotated[bool, typer.Option("--templates/--no-templates", help="Read {a|b} and __name__ in prompts.")] = True,
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures per prompt.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="The first picture's; picture i of rows without one gets seed + i. [default: drawn once]")
    ] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    schedule: Annotated[str | None, typer.Option(help="See `fewstep samplers`. [default: the model's]")] = None,
    guidance_scale: GuidanceScale = None,
    negative: Negative = None,
    guidance: Annotated[str | None, typer.Option(metavar="NAMES", help="See `fewstep samplers`. [default: cfg]")] = None,
    cache: Annotated[str | None, typer.Option(metavar="NAMES", help="Spare evaluations; see `fewstep samplers`.")] = None,
    methods: MethodOptions,
    size: SizeOptions,
    lora: Lora = None,
    lora_dir: LoraDir = None,
    prompt_syntax: PromptSyntax = None,
    fast: Annotated[
        bool | None, typer.Option("--fast/--no-fast", help="The default model's student. [default: where it serves every row]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="default, fast, a model folder of ours or diffusers', a checkpoint's file, or a hub id.")
    ] = None,
    parts: PartOptions,
    to: Annotated[str, typer.Option(metavar="KIND", help="files, webdataset or parquet.")] = "files",
    name: Annotated[
        str,
        typer.Option(
            metavar="TEMPLATE",
            help="Of files, with {index}, {thousand}, {line}, {seed}, {slug} or a column; .png, .jpg, .webp, .avif.",
        ),
    ] = "{index:06d}-{slug}-{seed}.png",
    per_file: Annotated[int, typer.Option(help="Pictures in each file of the other kinds.")] = 1000,
    quality: Annotated[
        int | None, typer.Option(help="Of files whose --name ends in .jpg, .webp or .avif. [default: 90]")
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Part I of N, from 0. [default: torchrun's, or all]")] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="In a folder of another batch: keep what is there, make what is not.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="In a folder of another batch: replace what is there.")
    ] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Try rows again that failed before.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first row that fails.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Read all rows, say which are wrong, and make nothing.")] = False,
    batch_size: Annotated[int, typer.Option(help="Pictures per network call.")] = 8,
    batch_invariant: Annotated[
        bool,
        typer.Option(
            "--batch-invariant/--no-batch-invariant", help="No bit of a picture depends on the others, on any device."
        ),
    ] = True,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Have Ray make them: local, auto, HOST:PORT or ray://HOST:PORT; docs/batch.md."),
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Processes of Ray's. [default: one a GPU, or all cores]")] = None,
    cpus_per_actor: Annotated[int, typer.Option(help="Cores, and threads, of each.")] = 1,
    machine: MachineOptions,
) -> int:
    """Make pictures of a table of prompts; the same command again goes on. Exit code 1 if rows failed."""
    from gen.batch.settings import BatchSettings, Share
    from gen.calls.call import AdapterUse
    from gen.cli.choose import choose_model
    from gen.cli.lora import parse_lora

    machine.run_imports()
    if skip_existing and overwrite:
        raise ValueError("--skip-existing keeps pictures that --overwrite replaces; give one of them.")
    defaults = {
        "num_inference_steps": steps,
        "sampler": sampler,
        "schedule": schedule,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative,
        "guidance": guidance,
        "cache": cache,
        **methods.keywords(),
        **size.keywords(),
        "prompt_syntax": prompt_syntax,
    }
    named = [parse_lora(one) for one in lora or []]
    settings = BatchSettings(
        source,
        output,
        defaults={keyword: value for keyword, value in defaults.items() if value is not None},
        columns=columns_of(column or []),
        extra=extra,
        templates=templates,
        combinatorial=combinatorial,
        wildcards=wildcards,
        number=number,
        seed=seed,
        model=choose_model(model, fast, {**defaults, **parts.arguments(), "lora": lora}) if model or fast is not None else None,
        model_arguments=parts.arguments(),
        device=Share.device(machine.device),
        dtype=machine.dtype,
        adapters=tuple(AdapterUse(str(file), 1.0 if weight is None else weight) for file, weight in named),
        lora_dir=lora_dir,
        kind=to,
        name=name,
        per_file=per_file,
        quality=quality,
        share=Share.of(shard),
        existing="skip" if skip_existing else "overwrite" if overwrite else "refuse",
        retry_errors=retry_errors,
        strict=strict,
        batch_size=batch_size,
        batch_invariant=batch_invariant,
    )
    if ray is None and (actors is not None or cpus_per_actor != 1):
        raise ValueError("--actors and --cpus-per-actor are for Ray; give --ray local too, or leave them out.")
    if check:
        return only_check(settings, machine.quiet)
    if ray is None:
        return run(settings, machine.quiet)
    from gen.batch.ray_pool import RayOptions

    return run(settings, machine.quiet, RayOptions(ray, actors, cpus_per_actor, tuple(machine.import_ or ())))


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """keyword -> column, of "keyword=column"."""
    columns = dict[str, str]()
    for pair in pairs:
        keyword, equals, column = pair.partition("=")
        if not (keyword and equals and column):
            raise ValueError(f"--column {pair!r}: write it as KEYWORD=COLUMN, for example prompt=caption.")
        columns[keyword] = column
    return columns


def only_check(settings: Any, quiet: bool) -> int:
    """Say which rows are wrong; those that follow one another and are wrong alike in one line."""
    from gen.batch.run import check_rows

    alike: list[BadRow] = []  # the first and the last of such rows

    def tell() -> None:
        if alike:
            lines = f"line {alike[0].line}" if len(alike) == 1 else f"lines {alike[0].line} to {alike[-1].line}"
            print(printable(f"{settings.source}, {lines}: {alike[0].reason}"))
            alike.clear()

    def on_bad(row: BadRow) -> None:
        if alike and (row.reason, row.index) != (alike[0].reason, alike[-1].index + alike[-1].pictures):
            tell()
        alike[1:] = [row]  # in the place of the last, or as the first

    pictures, bad = check_rows(settings, on_bad)
    tell()
    say(f"{_count(pictures, 'picture')} can be made; {_count(bad, 'row')} cannot.", quiet)
    return 1 if bad else 0


def run(settings: Any, quiet: bool, ray: Any = None) -> int:
    """Make them, with a bar; on a cluster if `ray` says which."""
    from tqdm import tqdm

    from gen.batch.run import run_batch

    def bar(total: int | None, there: int) -> Any:
        hide = True if quiet or settings.share.index else None  # None: where nobody looks
        return tqdm(total=total, initial=there, unit=" pictures", disable=hide, smoothing=0.05, dynamic_ncols=True)

    def tell(text: str) -> None:
        say(printable(text), quiet)

    try:
        if ray is None:
            result = run_batch(settings, progress=bar, say=tell)
        else:
            from gen.batch.ray_pool import run_on_ray

            result = run_on_ray(settings, ray, progress=bar, say=tell)
    except OSError as error:  # the disk is full, or gone
        why = error.strerror or str(error)
        raise ValueError(
            f"{settings.output}: {why}. What was made before is in place; the same command goes on when that is mended."
        ) from None
    except KeyboardInterrupt as stop:
        say("Interrupted; what was made is saved. The same command goes on.", quiet)
        return exit_code(stop)
    say(
        f"{_count(result.made, 'picture')} made, {result.there} in {settings.output}; {_count(result.failed, 'row')} failed"
        f"{' (errors.jsonl)' if result.failed else ''}.",
        quiet,
    )
    return 1 if result.failed else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
