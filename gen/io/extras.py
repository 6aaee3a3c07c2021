"""What to type where a package is missing that only some commands need: fewstep itself is not on PyPI."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def install(extra: str) -> str:
    """The command that installs an extra of fewstep, to be typed in its folder."""
    pip = ".venv/bin/pip" if Path(sys.prefix) == _ROOT / ".venv" else "pip"
    return f"{pip} install -e '.[{extra}]' (in fewstep's folder)"
