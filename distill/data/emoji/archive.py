"""One archive of pictures: a zip that holds `images/<pack>/<hex>.webp`, `metadata.jsonl` and `concepts.txt`.

`metadata.jsonl` has one line per picture, in the form that image-folder loaders read; `concepts.txt` lists the labels that
number the concepts, the same in every archive of one build, so that a concept has one index whichever archive is read.
The same records and pictures give the same bytes: members are stored, sorted, and dated alike.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from distill.data.errors import DataError
from gen.io.errors import CheckpointError, opened
from gen.io.members import read_member
from gen.io.weights import write_bytes
from gen.nn.registry import Config, describe

METADATA, CONCEPTS = "metadata.jsonl", "concepts.txt"
FILE_NAME = re.compile(r"images/[a-z0-9-]{1,40}/[0-9A-F]{1,8}(-[0-9A-F]{1,8}){0,15}\.webp")
PICTURE_LIMIT, TEXT_LIMIT = 1 << 20, 1 << 26  # bytes


class DrawingRecord(Config):
    """What is known of one picture. `hex` is the emoji's code points; `names`, `tags`, `keywords` are in lower case."""

    file_name: str
    pack: str
    family: str
    style: str
    hex: str
    label: str
    group: str
    subgroup: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    keywords: tuple[str, ...]
    licence: str


def write_archive(path: Path, records: Sequence[DrawingRecord], pictures: Mapping[str, bytes], concepts: Sequence[str]) -> None:
    """Write an archive atomically; `pictures` maps a record's file name to its WebP bytes."""
    records = sorted(records, key=lambda record: record.file_name)
    lines = [json.dumps(record.model_dump(mode="json"), ensure_ascii=False) for record in records]
    members = [(CONCEPTS, "".join(f"{c}\n" for c in concepts).encode()), (METADATA, "".join(f"{x}\n" for x in lines).encode())]
    members += [(record.file_name, pictures[record.file_name]) for record in records]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members:
            # the text is compressed, pictures are already
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if name == METADATA else zipfile.ZIP_STORED
            file.writestr(info, data)
    write_bytes(path, buffer.getvalue())


def _read(file: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    return read_member(file, name, limit, path, "emoji archive", DataError)


def read_archive(path: Path | str) -> tuple[list[DrawingRecord], list[bytes], list[str]]:
    """(records, the picture's WebP bytes for each, concept labels) of an archive."""
    path = Path(path)
    try:
        with opened(path) as stream, zipfile.ZipFile(stream) as file:
            lines = _read(file, METADATA, TEXT_LIMIT, path).decode().splitlines()
            concepts = _read(file, CONCEPTS, TEXT_LIMIT, path).decode().splitlines()
            records = [DrawingRecord.model_validate_json(line) for line in lines]
            for record in records:
                if not FILE_NAME.fullmatch(record.file_name):
                    raise DataError(f"{path}: {record.file_name!r} is not a picture's name (images/<pack>/<code>.webp).")
            pictures = [_read(file, record.file_name, PICTURE_LIMIT, path) for record in records]
    except ValidationError as error:
        raise DataError(f"{path}: a line of {METADATA} is not valid: {describe(error)}.") from None
    except (CheckpointError, OSError, zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} cannot be read as an emoji archive ({error}); build or download it again.") from None
    unknown = sorted({record.label for record in records} - set(concepts))
    if unknown:
        raise DataError(f"{path}: the labels {', '.join(unknown[:5])} are not in {CONCEPTS}.")
    return records, pictures, concepts
