"""Files written in one piece: beside their final name, synced, renamed, and the rename synced too.

A crash or a full disk leaves what was there before, and nothing else. Names of temporary files begin with a dot, end in .tmp
and are drawn at random, so that threads and processes do not meet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def beside(path: Path, kind: str = "") -> Path:
    """A hidden name in the folder of `path` that no other thread or process has."""
    kind = f".{kind}" if kind else ""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}{kind}.tmp")


def sync(path: Path) -> None:
    """Flush a file or folder to disk; some file systems cannot flush a folder, which changes nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (error.errno in (errno.EINVAL, errno.ENOTSUP) and path.is_dir()):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def written(path: Path | str, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path to write a file to, which takes the place of `path` once the block ends without an error.

    Not `overwrite`: FileExistsError where the name is taken by then. OSError where the disk is full, and nothing has changed.
    """
    path = Path(path)
    temporary = beside(path)
    try:
        yield temporary
        sync(temporary)
        if overwrite:
            os.replace(temporary, path)
        else:
            _place(temporary, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _place(temporary: Path, path: Path) -> None:
    """Under a name that nobody has: with no moment in between where the file system has links."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)
