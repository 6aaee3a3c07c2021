"""What the training commands share: from a run's options to its exit code."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from distill.imports import add_imports, run_imports
from distill.run_folder import TrainingError

if TYPE_CHECKING:
    from distill.config import TrainConfig
    from distill.trainer import Trainer


def add_checks(parser: argparse.ArgumentParser, dry_run: str) -> None:
    """--dry-run, whose help is given, --memory and --import."""
    add_imports(parser)
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument("--memory", action="store_true", help="print the bytes of weights, gradients, optimisers and averages")


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
        run_imports(given)
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
