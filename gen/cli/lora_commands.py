"""`fewstep lora`: its commands and their options. `gen.cli.lora_files` and other packages do the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen.cli.options import Nonfinite, Quiet, Written
from gen.cli.other_packages import HANDED_OVER, hand_over
from gen.cli.spoken import SpokenCommand

loras = typer.Typer(
    help="Train LoRAs; look into their files, convert and merge them.", no_args_is_help=True, rich_markup_mode=None
)


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    app.add_typer(loras, name="lora")


@loras.command(cls=SpokenCommand)
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file, or a folder of peft or diffusers.")],
    model: Annotated[str | None, typer.Option(help="Say which layers fit this model; its weights are not read.")] = None,
    json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    allow_nonfinite: Nonfinite = False,
) -> int:
    """Show what a LoRA file holds. Exit code 1 if it does not fit the model given."""
    from gen.cli.lora_files import inspect

    return inspect(file, model=model, as_json=json, allow_nonfinite=allow_nonfinite)


@loras.command("convert", cls=SpokenCommand)
def convert_lora(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A safetensors file, or a folder of peft or diffusers.")],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT", help="What to write, for peft a folder; nothing is overwritten. Or -o OUT.", show_default=False
        ),
    ] = None,
    output: Written = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="kohya, diffusers, peft, ai-toolkit. [default: the file's]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model whose names the layers get; kohya's files need it.")] = None,
    fold: Annotated[bool, typer.Option("--fold", help="Multiply scales into the factors, for ai-toolkit.")] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. [default: the file's]")] = None,
    rename_word: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Another name for a learned word; repeatable.")
    ] = None,
    allow_nonfinite: Nonfinite = False,
    quiet: Quiet = False,
) -> int:
    """Convert a LoRA file between the formats of trainers."""
    from gen.cli.lora_files import convert
    from gen.cli.parser import chosen_output

    target = chosen_output(target, output)
    return convert(
        source, target, to=to, model=model, fold=fold, dtype=dtype, rename_word=rename_word or [],
        allow_nonfinite=allow_nonfinite, quiet=quiet,
    )  # fmt: skip


@loras.command("train", context_settings=HANDED_OVER, add_help_option=False)
def train_lora(context: typer.Context) -> int:
    """Train a LoRA: fewstep lora train CONFIG.yaml, or fewstep lora train FOLDER --prompt "a <new> cat" -o FILE"""
    return hand_over("lora train", context.args)


def _lora(name: str, text: str) -> None:
    def run(context: typer.Context) -> int:
        return hand_over("lora", [name, *context.args])

    loras.command(name, help=text, context_settings=HANDED_OVER, add_help_option=False)(run)


_lora("merge", "Add several LoRAs, or scale one: fewstep lora merge A.safetensors:0.8 B.safetensors -o OUT.safetensors")
_lora("resize", "Lower the rank of a LoRA with the least error: fewstep lora resize IN OUT --rank 16")
_lora("extract", "Make a LoRA of the difference of two models: fewstep lora extract TUNED BASE OUT --rank 32")
_lora("spectrum", "Show norms and singular values of a LoRA, as a table or a plot.")
_lora("interpolate", "Write the model between two: fewstep lora interpolate FIRST SECOND OUT --share 0.5")
