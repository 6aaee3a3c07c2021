"""Names for what is written beside its place before it is renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def beside(path: Path, kind: str = "") -> Path:
    """A hidden name in the folder of `path` that no other thread or process has."""
    kind = f".{kind}" if kind else ""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}{kind}.tmp")
