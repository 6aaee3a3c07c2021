"""The command line: `fewstep image "a red heart"`. Every command is a page of its own in `gen.cli.app`.

Paths of finished files go to stdout, everything said to stderr. Exit codes: 0 done, 1 a replay that came out different,
2 a request that cannot be met (one sentence says why), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from gen.cli import pictures, task_options
from gen.cli.energies import ENERGIES
from gen.cli.groups import grouped
from gen.cli.options import Device, Dtype, GuidanceScale, Height, Import, Model, Nonfinite, PartOptions, Quiet, Width, Written
from gen.io.version import __version__

# commands that belong to other packages: a closed table, run as `python -m MODULE` would be
MODULES = {
    "data build": "distill.data.emoji.build",
    "words": "distill.words",
    "train": "distill.train",
    "evaluate": "distill.evaluate",
    "lora train": "customization.train",
    "lora": "customization.lora",
}
_others: list[str] = []  # of them, those that this process ran
__all__ = ["ENERGIES", "app", "main", "program"]
HANDED_OVER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    name="fewstep",
    help="Make pictures with few-step diffusion samplers; train and evaluate the models that do.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(help="Build training data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data, name="data")
loras = typer.Typer(
    help="Train LoRAs; look into their files, convert and merge them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(loras, name="lora")


def _version(value: bool) -> None:
    if value:
        print(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


pictures.add(app)  # image, replay
for _command in task_options.commands():  # restore, layout, panorama, ...
    app.command()(_command)


@app.command()
@grouped
def info(
    *,
    picture: Annotated[str, typer.Argument(metavar="PICTURE|MODEL", help="A PNG, JPEG, WebP or GIF; or a model.")],
    json: Annotated[bool, typer.Option("--json", help="The recipe as JSON.")] = False,
    height: Height = None,
    width: Width = None,
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
        print(model_memory(picture, parts.arguments(), device, dtype, height=height, width=width, batch=batch_size))
    return 0


@app.command()
def env() -> None:
    """Show versions, devices and attention backends, and why one is not available."""
    from gen.cli.show import env

    print(env())


@app.command()
def samplers() -> None:
    """List the samplers, schedules, guidance rules and caches; one line each where another program reads them."""
    import shutil

    from gen.cli.show import samplers

    print(samplers(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


@app.command()
def models() -> None:
    """List the published sizes of the networks: parameters and operations."""
    from gen.cli.models import models

    print(models())


@app.command()
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
    device: Device = None,
    dtype: Dtype = None,
    import_: Import = None,
    quiet: Quiet = False,
) -> int:
    """Compare samplers by step count: a sheet to look at, and distances to a fine reference."""
    from gen.cli.compare import run
    from gen.io.user_code import import_files

    import_files(import_)

    return run(
        prompts or [],
        samplers=samplers,
        schedules=schedules,
        steps=steps,
        reference=reference,
        model=model,
        parts=parts.arguments(),
        seed=seed,
        guidance_scale=guidance_scale,
        output=output,
        device=device,
        dtype=dtype,
        quiet=quiet,
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A safetensors file, an index of several, or a folder.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="What to write; nothing is overwritten. Or -o OUT.", show_default=False)
    ] = None,
    output: Written = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="uvit, dit, pixart, diffusers-dit, diffusers-pixart, fewstep.")
    ] = None,
    from_pickle: Annotated[
        bool, typer.Option("--from-pickle", help="IN is a .pt or .pth file; write its tensors as safetensors.")
    ] = False,
    key: Annotated[str | None, typer.Option(help="The entry of the pickle that holds the weights.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where neither width nor config tells them.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width in latent pixels, where the file does not tell.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. [default: the file's]")] = None,
    quiet: Quiet = False,
) -> int:
    """Convert checkpoints: between published formats, and from pickle to safetensors."""
    from gen.cli.convert import run
    from gen.cli.parser import chosen_output

    target = chosen_output(target, output)
    return run(source, target, to=to, from_pickle=from_pickle, key=key, heads=heads, size=size, dtype=dtype, quiet=quiet)


@loras.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A safetensors file, or a folder of peft or diffusers.")],
    model: Annotated[str | None, typer.Option(help="Say which layers fit this model; its weights are not read.")] = None,
    json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
    allow_nonfinite: Nonfinite = False,
) -> int:
    """Show what a LoRA file holds. Exit code 1 if it does not fit the model given."""
    from gen.cli.lora_files import inspect

    return inspect(file, model=model, as_json=json, allow_nonfinite=allow_nonfinite)


@loras.command("convert")
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


@app.command(context_settings=HANDED_OVER, add_help_option=False)
def train(context: typer.Context) -> int:
    """Train what a config says: fewstep train CONFIG.yaml key=value ..."""
    return hand_over("train", context.args)


@app.command(context_settings=HANDED_OVER, add_help_option=False)
def evaluate(context: typer.Context) -> int:
    """Measure a model: fewstep evaluate ..."""
    return hand_over("evaluate", context.args)


@app.command(context_settings=HANDED_OVER, add_help_option=False)
def words(context: typer.Context) -> int:
    """List what the default model knows, or look words up: fewstep words ..."""
    return hand_over("words", context.args)


@data.command(context_settings=HANDED_OVER, add_help_option=False)
def build(context: typer.Context) -> int:
    """Build the default model's training data: fewstep data build ..."""
    return hand_over("data build", context.args)


def hand_over(command: str, arguments: Sequence[str]) -> int:
    """Run another package's module as a program of its own, in this process."""
    import importlib.util
    import runpy

    _others.append(command)
    module = MODULES[command]
    if importlib.util.find_spec(module.split(".")[0]) is None or importlib.util.find_spec(module) is None:
        raise ValueError(
            f"`fewstep {command}` needs the module {module}, which this installation lacks; install fewstep whole."
        )
    before = sys.argv
    sys.argv = [f"fewstep {command}", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    finally:
        sys.argv = before
    return 0


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        print(f"Note: {message}", file=sys.stderr)


class Terminated(KeyboardInterrupt):
    """SIGTERM: what is under way ends as after Ctrl-C, its temporary files removed; the exit code is 143."""


def _terminate(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the second one finds the first at work
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error is one sentence on stderr."""
    gc.set_threshold(100_000)  # importing torch makes many objects, all of which stay: looking for dead ones costs 0.3 s
    if os.environ.get("FEWSTEP_TRACEBACK"):
        return app(arguments, prog_name="fewstep", standalone_mode=False) or 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _note
            return app(arguments, prog_name="fewstep", standalone_mode=False) or 0
    except Terminated:
        return 143
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left: not our error, and nothing to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError" and hasattr(error, "format_message"):
            print(error.format_message(), file=sys.stderr)  # the help text
        else:
            print(f"fewstep: {_sentence(error)}", file=sys.stderr)
        return 2


def program() -> NoReturn:
    """The command as a process of its own. What it made is on disk by now, so it leaves at once: taking torch apart piece by
    piece would take half a second more. Commands of other packages end in the ordinary way."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    code = main()
    if not _others:
        with contextlib.suppress(OSError):  # a reader of our output that left
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _sentence(error: Exception) -> str:
    if hasattr(error, "format_message"):  # wrong usage, in the words of the parser
        context = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        return f"{error.format_message()}{hint}"
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error}."
    kind = type(error).__name__
    if isinstance(error, MemoryError | RuntimeError):
        from gen.models.decoding import is_out_of_memory

        if is_out_of_memory(error):
            return "Memory ran out; make smaller pictures, or use a smaller model, another device or another dtype."
    return f"{kind}: {error}. This is a defect of fewstep; set FEWSTEP_TRACEBACK=1 to see where it happened."


if __name__ == "__main__":
    program()
