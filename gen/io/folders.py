"""Folders that are replaced in one piece: whoever looks sees the old one or the new one, whole.

A folder is written beside its final name, flushed to disk, and exchanged with the one that is there, in one step where the
system has such a step. Elsewhere the old one is moved aside for a moment; where a crash falls into that moment, `recover`
brings it back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samplers.atomic import beside, sync

_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux; Darwin's flag for the same has the same number
_UNKNOWN = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places; False where the system or the file system can't."""
    library: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    first, second = os.fsencode(a), os.fsencode(b)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _EXCHANGE)
    elif hasattr(library, "renamex_np"):
        failed = library.renamex_np(first, second, _EXCHANGE)
    else:
        return False
    if failed and (number := ctypes.get_errno()) not in _UNKNOWN:
        raise OSError(number, os.strerror(number), str(a), None, str(b))
    return not failed


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder to disk, and the folder itself."""
    for where, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(where) / name)
        sync(Path(where))


def put_in_place(new: Path, folder: Path) -> None:
    """Rename a finished folder to its final name; one that has this name already is replaced, and deleted. Both are on one file
    system; the folder that holds the final name is flushed to disk."""
    old = beside(folder, "old")
    if folder.exists():
        if _exchange(new, folder):
            old = new
        else:
            os.rename(folder, old)
            try:
                os.rename(new, folder)
            except OSError:
                os.rename(old, folder)
                raise
    else:
        os.rename(new, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """A new folder of the same name to write into, which takes the place of `folder` once the block ends without an error.
    After an error nothing is left of it, and `folder` is as it was."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    around = beside(folder, "new")
    new = around / folder.name
    try:
        new.mkdir(parents=True)
        yield new
        sync_tree(new)
        put_in_place(new, folder)
    finally:
        shutil.rmtree(around, ignore_errors=True)


def recover(folder: Path) -> bool:
    """Bring back the folder that a crash in the middle of its replacement left beside its name; True where there was one."""
    if os.path.lexists(folder):
        return False
    left = sorted(folder.parent.glob(f".{_literal(folder.name[:200])}.*.old.tmp"), key=lambda path: path.stat().st_mtime)
    if not left:
        return False
    os.rename(left[-1], folder)
    return True


def _literal(name: str) -> str:
    """A name in a glob pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
