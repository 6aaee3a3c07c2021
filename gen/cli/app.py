"""The command line: `fewstep image "a red heart"`. The table `COMMANDS` says which files hold its commands.

Paths of finished files go to stdout, everything said to stderr. Exit codes: 0 done, 1 a replay that came out different,
2 a request that cannot be met (one sentence says why), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, NoReturn, TextIO

import typer

from gen.calls import errors
from gen.cli.energies import ENERGIES
from gen.cli.other_packages import MODULES, hand_over, ran
from gen.io.version import __version__

__all__ = ["ENERGIES", "MODULES", "app", "hand_over", "main", "program"]

# The modules of gen.cli that have commands, in the order of `fewstep --help`: a closed table. Each has `add(app)`, and imports
# what its commands need inside of them, so that `--help` stays quick.
COMMANDS = (
    "pictures",  # image, replay
    "shell",
    "ui",
    "task_options",  # restore, layout, panorama, ...
    "sweep",
    "batch",
    "serve",
    "compare",
    "gallery",
    "about",  # info, env, samplers, models
    "convert",
    "other_packages",  # train, evaluate, scaling, words, transport, data
    "lora_commands",
    "completion",
)

app = typer.Typer(
    name="fewstep",
    help="Make pictures with few-step diffusion samplers; train and evaluate the models that do.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        print(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None: ...


for _name in COMMANDS:
    importlib.import_module(f"gen.cli.{_name}").add(app)


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
    except SystemExit as end:  # typer's own, where the reader of our output left: not our error, and nothing to say to it
        if isinstance(end.__context__, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
            return 0
        raise
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError" and hasattr(error, "format_message"):
            print(error.format_message(), file=sys.stderr)  # the help text
        else:
            print(f"fewstep: {sentence(error)}", file=sys.stderr)
        return 2


def program() -> NoReturn:
    """The command as a process of its own. What it made is on disk by now, so it leaves at once: taking torch apart piece by
    piece would take half a second more. Commands of other packages end in the ordinary way."""
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):  # names that a terminal has no letters for are shown by their numbers
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")
    code = main()
    if not ran:
        with contextlib.suppress(OSError):  # a reader of our output that left
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def sentence(error: Exception) -> str:
    """An error in words; wrong usage in those of the parser."""
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        said = error.format_message()
        return f"{said}{'' if said.endswith(('.', '?', '!')) else '.'}{hint}"
    return errors.sentence(error)


if __name__ == "__main__":
    program()
