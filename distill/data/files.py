"""Files below a root, and nothing else: links that lead out, pipes and devices are refused before they are opened."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from distill.data.report import Unusable


def sha256_of(data: bytes) -> str:
    """A hash of bytes, as text."""
    return hashlib.sha256(data).hexdigest()


def read_below(root: Path, name: str, limit: int, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a file below a root folder, or `size` of them from an offset. Unusable where it is not such a file."""
    if not name or "\0" in name or os.path.isabs(name) or ".." in Path(name).parts:
        raise Unusable("has a name that leads out of the folder")
    try:
        top, path = os.path.realpath(root), os.path.realpath(root / name)
        if not path.startswith(top.rstrip(os.sep) + os.sep):
            raise Unusable("is a link that leads out of the folder")
        # neither waiting for a pipe's other end, nor following a link that appears meanwhile
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except Unusable:
        raise
    except FileNotFoundError:
        raise Unusable("is missing, or a link to nothing") from None
    except (OSError, ValueError) as error:
        raise Unusable(f"cannot be read ({getattr(error, 'strerror', None) or 'bad name'})") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unusable("is not a regular file")
        wanted = status.st_size if size is None else size
        if wanted > limit:
            raise Unusable(f"is larger than {limit >> 20} MiB" if limit >> 20 else f"is larger than {limit >> 10} KiB")
        file.seek(offset)
        data = file.read(wanted)
    if len(data) < wanted:
        raise Unusable("is cut short")
    return data
