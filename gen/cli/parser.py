"""The parser of the commands of other packages: their errors are one sentence, as everywhere else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

running_command: ContextVar[str | None] = ContextVar("running_command", default=None)  # of fewstep, that runs a module


class Parser(argparse.ArgumentParser):
    """`argparse`'s own, but for what it says of a wrong command line. Subcommands get the same.

    Where `fewstep` runs a module as one of its commands (`gen.cli.other_packages`), it goes by the command's name.
    """

    def __init__(self, prog: str | None = None, **more: Any):
        command = running_command.get() if (prog or "").startswith("python -m ") else None
        super().__init__(prog=command or prog, **more)

    def error(self, message: str) -> NoReturn:
        print(f"fewstep: {message[:1].upper()}{message[1:]}. See `{self.prog} --help`.", file=sys.stderr)
        sys.exit(2)


def exit_code_of(run: Callable[[], int]) -> int:
    """What a command's work returns; 2 after one sentence where the request cannot be met, 130 where it was interrupted."""
    from gen.calls.errors import sentence

    try:
        return run()
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"fewstep: {sentence(error)}", file=sys.stderr)
    return 2


def add_output(command: argparse.ArgumentParser) -> None:
    """OUT, or -o OUT as in every other command."""
    command.add_argument("output", type=Path, nargs="?", metavar="OUT", help="what to write; or -o OUT")
    command.add_argument("-o", "--output", dest="output_option", type=Path, metavar="OUT", help=argparse.SUPPRESS)


def one_output(given: argparse.Namespace) -> None:
    """Put what `add_output` read into `output`. ValueError where there is none, or two."""
    if hasattr(given, "output_option"):
        given.output = chosen_output(given.output, given.output_option)


def chosen_output(positional: Path | None, option: Path | None) -> Path:
    """The one of two ways to say where to write that was used."""
    if (positional is None) == (option is None):
        both = f"{positional} and {option} are both given as" if positional else "Say"
        raise ValueError(f"{both} what to write; give it once: -o OUT.")
    return option if positional is None else positional  # type: ignore[return-value]
