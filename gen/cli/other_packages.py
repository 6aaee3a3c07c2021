"""Commands that belong to other packages, which stand above this one: their modules are run, never imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from gen.cli.parser import running_command

# a closed table: each runs as `python -m MODULE` would
MODULES = {
    "data build": "distill.data.emoji.build",
    "data compose": "customization.compose",
    "words": "distill.words",
    "forget": "customization.forget",
    "transport": "distill.transport",
    "train": "distill.train",
    "evaluate": "distill.evaluate",
    "scaling": "distill.scaling",
    "lora train": "customization.train",
    "lora": "customization.lora",
}
# objectives of "lora train" whose result is a whole model, so that one looks for them under "train"
TEACHING = ("full",)
ran: list[str] = []  # of them, by this process
HANDED_OVER = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

data = typer.Typer(help="Build training data.", no_args_is_help=True, rich_markup_mode=None)


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    for command in (train, evaluate, scaling, words, forget, transport):
        app.command(context_settings=HANDED_OVER, add_help_option=False)(command)
    app.add_typer(data, name="data")


def train(context: typer.Context) -> int:
    """Train what a config says: fewstep train CONFIG.yaml key=value ..."""
    return hand_over("lora train" if _teaches(context.args) else "train", context.args)


def _teaches(arguments: Sequence[str]) -> bool:
    """Is the objective of a training config one of those that teach a model, which `fewstep lora train` runs?"""
    import yaml

    file = next((Path(one) for one in arguments if one.endswith((".yaml", ".yml"))), None)
    try:
        values = yaml.safe_load(file.read_text()) if file is not None and file.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # which the training says in its own words
    objective = values.get("objective") if isinstance(values, dict) else None
    return isinstance(objective, dict) and objective.get("type") in TEACHING


def evaluate(context: typer.Context) -> int:
    """Measure a model: fewstep evaluate ..."""
    return hand_over("evaluate", context.args)


def scaling(context: typer.Context) -> int:
    """Fit scaling laws to training runs, and say what to train next: fewstep scaling RUN RUN RUN --budget 12h"""
    return hand_over("scaling", context.args)


def words(context: typer.Context) -> int:
    """List what the default model knows, or look words up: fewstep words ..."""
    return hand_over("words", context.args)


def forget(context: typer.Context) -> int:
    """Make a model draw something no more: fewstep forget "a clown" --to "a person" -o FILE"""
    return hand_over("forget", context.args)


def transport(context: typer.Context) -> int:
    """Turn pictures of one kind into another: fewstep transport MODEL --from lines --to picture ..."""
    return hand_over("transport", context.args)


@data.command(context_settings=HANDED_OVER, add_help_option=False)
def build(context: typer.Context) -> int:
    """Build the default model's training data: fewstep data build ..."""
    return hand_over("data build", context.args)


@data.command("compose", context_settings=HANDED_OVER, add_help_option=False)
def compose_data(context: typer.Context) -> int:
    """Make training pictures of several concepts together: fewstep data compose cat=FOLDER dog=FOLDER -o FOLDER"""
    return hand_over("data compose", context.args)


def hand_over(command: str, arguments: Sequence[str]) -> int:
    """Run another package's module as a program of its own, in this process."""
    import importlib.util
    import runpy

    ran.append(command)
    module = MODULES[command]
    if importlib.util.find_spec(module.split(".")[0]) is None or importlib.util.find_spec(module) is None:
        raise ValueError(
            f"`fewstep {command}` needs the module {module}, which this installation lacks; install fewstep whole."
        )
    before = sys.argv
    sys.argv = [f"fewstep {command}", *arguments]
    named = running_command.set(f"fewstep {command}")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    finally:
        sys.argv = before
        running_command.reset(named)
    return 0
