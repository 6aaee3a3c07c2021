"""Where the members of a tar file are: a reader of headers that takes regular files and nothing else.

POSIX ustar, with long names as pax or GNU records. Links, devices, pipes, sparse files, names that lead out, and headers whose
checksum is wrong are never followed; a shard that ends early gives what came before. Contents are read later, by offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from distill.data.report import Unusable
from gen.io.errors import opened

BLOCK = 512
NAME_LIMIT = 4096
RECORD_LIMIT = 1 << 20
KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar file, or why an entry is not one."""

    name: str
    offset: int
    size: int
    problem: str | None = None


def members(path: Path) -> Iterator[TarMember]:
    """The entries of a tar file in order. Unusable where the file is not one; folders are passed over."""
    with opened(path) as file:
        end = file.seek(0, 2)
        file.seek(0)
        long_name: str | None = None
        position = 0
        while position < end:
            file.seek(position)
            header = file.read(BLOCK)
            if header.strip(b"\0") == b"":
                return
            if len(header) < BLOCK:
                yield TarMember("(end)", position, 0, "is where the shard is cut short")
                return
            if not _sound(header):
                if position == 0:
                    raise Unusable("is not an uncompressed tar file")
                yield TarMember("(header)", position, 0, "is where a header is damaged, and the rest of the shard is not read")
                return
            size, kind = _number(header[124:136]), header[156:157]
            start = position + BLOCK
            position = start + -(-size // BLOCK) * BLOCK
            if start + size > end:
                yield TarMember(_name(header) if long_name is None else long_name, start, 0, "is cut short")
                return
            if kind in (b"x", b"L"):
                if size > RECORD_LIMIT:
                    raise Unusable("has a header of more than 1 MiB")
                file.seek(start)
                long_name = _long_name(file, size, kind, long_name)
                continue
            name, long_name = (_name(header) if long_name is None else long_name), None
            if kind in (b"5", b"g"):
                continue
            yield TarMember(name, start, size, _problem(name, kind))


def _problem(name: str, kind: bytes) -> str | None:
    if kind not in (b"0", b"\0", b"7"):
        return f"is {KINDS.get(kind, 'an entry of unknown kind')}"
    parts = PurePosixPath(name).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or "\\" in name or "\0" in name or ":" in parts[0]:
        return "has a name that leads out of the archive"
    return "has a name of more than 4096 letters" if len(name) > NAME_LIMIT else None


def _sound(header: bytes) -> bool:
    """Is the header's checksum right?"""
    try:
        stated = int(header[148:156].strip(b"\0 ") or b"x", 8)
        _number(header[124:136])
    except (ValueError, Unusable):
        return False
    return stated == sum(header[:148]) + 8 * 0x20 + sum(header[156:])


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's binary numbers, for more than 8 GiB
        if field[0] != 0x80:
            raise Unusable("has a negative size")
        return int.from_bytes(field[1:], "big")
    number = int(field.strip(b"\0 ") or b"0", 8)
    if number < 0:
        raise Unusable("has a negative size")
    return number


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" and header[263:265] == b"00" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _long_name(file: BinaryIO, size: int, kind: bytes, before: str | None) -> str | None:
    data = file.read(size)
    if kind == b"L":
        return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    position, name = 0, before
    while position < len(data):  # records of "length key=value\n"
        length, _, _ = data[position : position + 20].partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1 or position + int(length) > len(data):
            raise Unusable("has a damaged pax header")
        record = data[position + len(length) + 1 : position + int(length) - 1]
        key, _, value = record.partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        if key == b"size" or key.startswith(b"GNU.sparse"):
            raise Unusable(f"has a pax header with {key.decode(errors='replace')}, which is not read")
        position += int(length)
    return name
