"""Reading a file that somebody names: a regular file of bounded size, or an error in a sentence. Pipes and devices are refused
before a byte of them is waited for."""

from __future__ import annotations

import codecs
import os
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

SMALL = 1_000_000  # bytes: more than any config has
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def printable(text: str) -> str:
    """Text from a file made harmless for a terminal: control characters are shown, not sent."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in text)


class CheckpointError(ValueError):
    """A weight or config file that cannot be used; the message names the file and says why."""

    def __init__(self, path: os.PathLike | str, reason: str):
        super().__init__(f"{path}: {printable(reason)}")


def regular_file(path: Path) -> None:
    """CheckpointError unless the path is a file that can be opened: no folder, no pipe, no broken link."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        what = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise CheckpointError(path, f"{what}; check the name.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"cannot be read ({getattr(error, 'strerror', None) or error}).") from None
    if stat.S_ISDIR(mode):
        raise CheckpointError(path, "is a folder; give the path of a file.")
    if not stat.S_ISREG(mode):
        raise CheckpointError(path, "is not a regular file; give the path of a file.")


@contextmanager
def opened(path: Path | str) -> Iterator[BufferedReader]:
    """A regular file, open for reading; CheckpointError for anything else, also where a pipe takes its place meanwhile."""
    path = Path(path)
    regular_file(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror}).") from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CheckpointError(path, "is not a regular file; give the path of a file.")
        yield file


def read_bytes(path: Path | str, limit: int = SMALL) -> bytes:
    """All bytes of a regular file; CheckpointError where it is none, cannot be read, or has more than `limit` bytes."""
    with opened(path) as file:
        try:
            data = file.read(limit + 1)  # not by the size that it says: files of the system say 0, and others grow
        except OSError as error:
            raise CheckpointError(path, f"cannot be read ({error.strerror}).") from None
    if len(data) > limit:
        most = f"{limit >> 20} MiB" if limit >> 20 else f"{limit / 1e6:g} MB" if limit >= 100_000 else f"{limit} bytes"
        raise CheckpointError(path, f"is larger than {most}, the most that is read of such a file.")
    return data


def decode_text(data: bytes) -> str:
    """Text as other programs write it, without its byte-order mark: UTF-8, or UTF-16 that begins with such a mark.
    UnicodeDecodeError for bytes that are none."""
    for mark, encoding in _MARKS:
        if data.startswith(mark) and (len(data) > 2 or encoding == "utf-8"):
            return data[len(mark) :].decode(encoding)
    return data.decode()


def read_text(path: Path | str, limit: int = SMALL) -> str:
    """`decode_text` of a regular file; CheckpointError as `read_bytes`, or for bytes that are no text."""
    try:
        return decode_text(read_bytes(path, limit))
    except UnicodeDecodeError:
        raise CheckpointError(path, "is not UTF-8 text; save it as such.") from None


class RecipeError(ValueError):
    """A picture whose recipe cannot be read or written; the message names the file and says why."""
