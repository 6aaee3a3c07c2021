"""`--import my_methods.py` of the training commands: files of the user's own, which register methods by name."""

from __future__ import annotations

import argparse
from pathlib import Path

from gen.io.user_code import import_files


def add_imports(parser: argparse.ArgumentParser) -> None:
    """The option --import, which may be given several times."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        type=Path,
        default=[],
        metavar="FILE.py",
        help="run a file of your own that registers methods by name; repeatable",
    )


def run_imports(given: argparse.Namespace) -> None:
    """Run the files of --import, before a config names what they register. ValueError for one that cannot be run."""
    import_files(given.imports)
