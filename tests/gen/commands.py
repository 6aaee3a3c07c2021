"""The command line in tests: programs in processes of their own, and what they leave."""

from __future__ import annotations

import os
from pathlib import Path

# a program that runs in any folder finds the packages of this checkout
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}


def files(folder: Path = Path()) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
