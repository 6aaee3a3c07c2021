"""sha256 of weight files, remembered: a file that has the path, size, time and number that it had then is not read again.

What one process has read the next one knows, from `digests.json` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache). A
file that was written in the last seconds is read every time: its time could be that of another content.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.io.errors import CheckpointError, read_text, regular_file
from gen.io.weights import sha256, write_bytes

KEPT = 2000  # digests in the file, those asked for last
FRESH = 5.0  # seconds
LIMIT = 4_000_000  # bytes

_lock = threading.Lock()
_known: dict[str, str] | None = None


def store() -> Path:
    """Where digests are kept between processes."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "fewstep" / "digests.json"


def file_key(path: Path | str) -> str:
    """What tells this state of a file from others."""
    path = Path(path)
    regular_file(path)
    status = path.stat()
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"


def file_digest(path: Path | str) -> str:
    """sha256 of a file, from memory where it did not change."""
    key = file_key(path)
    with _lock:
        digest = _read().get(key)
    if digest is None:
        digest = sha256(path)
        remember(path, key, digest)
    return digest


def remember(path: Path | str, key: str, digest: str) -> None:
    """Keep the digest of a file that had this key before it was read; not where it changed meanwhile or is new."""
    global _known
    if file_key(path) != key or time.time() - Path(path).stat().st_mtime < FRESH:
        return
    with _lock:
        known = _read()
        known.pop(key, None)
        known[key] = digest
        _known = dict(list(known.items())[-KEPT:])
        try:
            store().parent.mkdir(parents=True, exist_ok=True)
            write_bytes(store(), json.dumps(_known).encode())
        except OSError:  # a cache that cannot be written is one that is not there
            pass


def _read() -> dict[str, str]:
    global _known
    if _known is None:
        _known = {}
        try:
            value: Any = json.loads(read_text(store(), LIMIT)) if store().is_file() else {}
        except (CheckpointError, ValueError, OSError, RecursionError):
            value = {}
        if isinstance(value, dict):
            _known = {k: v for k, v in value.items() if isinstance(v, str) and len(v) == 64}
    return _known


class DigestReader:
    """The digest of a safetensors file from what is read of it anyway: its header, and its tensors in the order of the file.
    Does nothing where the digest is known."""

    def __init__(self, path: Path):
        self.path, self.key, self.sum = path, file_key(path), hashlib.sha256()
        with _lock:
            self.needed = self.key not in _read()
        if not self.needed:
            return
        with open(path, "rb") as file:
            length = file.read(8)
            self.sum.update(length + file.read(int.from_bytes(length, "little")))

    def add(self, tensor: Tensor) -> None:
        """The next tensor."""
        if self.needed:
            self.sum.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def done(self) -> None:
        if self.needed:
            remember(self.path, self.key, self.sum.hexdigest())
