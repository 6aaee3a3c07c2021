"""What the training commands share: from a run's options to its exit code."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distill.run_folder import TrainingError

if TYPE_CHECKING:
    from distill.config import TrainConfig
    from distill.trainer import Trainer


def add_checks(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """--dry-run, whose help is given, and --memory."""
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument("--memory", action="store_true", help="print the bytes of weights, gradients, optimisers and averages")


def config_first(given: argparse.Namespace, name: str = "config") -> argparse.Namespace:
    """What was parsed, with the file in its place where key=value stood before it: these have no order of their own.

    name: the argument that is the file; the others are `overrides`. ValueError where no argument is a file.
    """
    arguments = [getattr(given, name), *given.overrides]
    files = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    if not files:
        raise ValueError(
            f"{' '.join(arguments)}: only key=value is given; say which config they change, for example "
            "configs/default/generator.yaml."
        )
    arguments.remove(files[0])
    setattr(given, name, files[0])
    given.overrides = arguments
    return given


def run_command(
    given: argparse.Namespace,
    make: Callable[[], tuple[TrainConfig, Trainer]],
    trained: Callable[[Trainer], list[str]],
    done: Callable[[Trainer], None] = lambda trainer: None,
) -> int:
    """Train, or do what --dry-run and --memory say. trained: lines about what trains; done: after a run that was finished.

    Returns 0; 2 for a run that cannot begin and 1 for one that cannot go on, after a sentence on stderr.
    """
    try:
        config, trainer = make()
        say = print if trainer.rank == 0 else lambda text: None  # all processes would say the same
        if given.dry_run:
            say("\n".join([config.model_dump_json(indent=2), *trained(trainer)]))
        elif given.memory:
            from distill.memory import table

            say(table(trainer))
        else:
            trainer.train()
            done(trainer)
    except OSError as error:
        where, room = (f"{error.filename}: " if error.filename else ""), (errno.ENOSPC, errno.EDQUOT)
        advice = "; make room, or give another output, and run again to go on" if error.errno in room else ""
        print(f"fewstep: {where}{error.strerror or error}{advice}.", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 1
    return 0
