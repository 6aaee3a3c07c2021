"""Rows of a source, one at a time: text, CSV and JSON lines here, tables in `gen.batch.tables`. Memory does not grow with them.

A row is (line number from 1, its columns). A line that cannot be read is (line number, the reason as a `BadLine`).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.io.errors import opened, read_text
from samplers.atomic import beside, sync
from samplers.lookup import nearest

LONGEST = 1_000_000  # characters of a line
TABLES = (".parquet",)
HUB = "hf:"


@dataclass(frozen=True)
class BadLine:
    """Why a line is no row."""

    reason: str


Row = tuple[int, Mapping[str, Any] | BadLine]


@dataclass(frozen=True)
class RowSource:
    """Where rows come from.

    path: of a file or folder, None for a data set of the hub.
    base: the folder of pictures that rows name.
    """

    name: str
    path: Path | None
    base: Path | None

    def rows(self) -> Iterator[Row]:
        """Every row, from the first."""
        if self.path is None or self.path.is_dir():
            from gen.batch.tables import read_dataset

            return read_dataset(self.name)
        if self.path.suffix.lower() in TABLES:
            from gen.batch.tables import read_parquet

            return read_parquet(self.path)
        return READERS[self.path.suffix.lower()](self.path)

    def columns(self) -> tuple[str, ...] | None:
        """The columns of all rows; None where every row names its own."""
        if self.path is None or self.path.is_dir():
            from gen.batch.tables import dataset_columns

            return dataset_columns(self.name)
        if self.path.suffix.lower() in TABLES:
            from gen.batch.tables import parquet_columns

            return parquet_columns(self.path)
        if READERS[self.path.suffix.lower()] is not read_csv:
            return None
        with _opened_table(self.path) as (_, names, _):
            return names

    def count(self) -> int | None:
        """About how many rows there are; None where that is not known beforehand."""
        if self.path is None or self.path.is_dir():
            return None
        if self.path.suffix.lower() in TABLES:
            from gen.batch.tables import parquet_rows

            return parquet_rows(self.path)
        lines, last = 0, b"\n"
        with opened(self.path) as file:
            while piece := file.read(1 << 20):
                lines, last = lines + piece.count(b"\n"), piece[-1:]
        return max(lines + (last != b"\n") - (self.path.suffix.lower() in (".csv", ".tsv")), 0)

    def digest(self) -> str:
        """sha256 of all that is read."""
        total = hashlib.sha256()
        if self.path is None:
            from gen.batch.tables import dataset_version

            return hashlib.sha256(dataset_version(self.name).encode()).hexdigest()
        folder = self.path.is_dir()
        for file in sorted(self.path.rglob("*")) if folder else [self.path]:
            if file.is_file():
                total.update(f"{file.relative_to(self.path).as_posix()}\0".encode() if folder else b"")
                with opened(file) as content:
                    total.update(hashlib.file_digest(content, "sha256").digest())
        return total.hexdigest()


def open_source(source: str, state: Path) -> RowSource:
    """The source of a name. state: the folder where standard input is kept, so that the same batch can go on without it.

    Raises ValueError for what is no file of a kind that is read.
    """
    if source.startswith(HUB):
        return RowSource(source, None, None)
    if source == "-":
        return RowSource("-", _keep_input(state), None)
    path = Path(source)
    if not path.exists():
        raise ValueError(f"{source} does not exist; give a file of prompts, - for standard input, or {HUB}NAME for a data set.")
    if path.is_dir():
        return RowSource(f"{HUB}{path}", path, path)
    if (suffix := path.suffix.lower()) not in (*READERS, *TABLES):
        near = nearest(suffix, [*READERS, *TABLES])
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(
            f"{source}: rows are read from {', '.join([*READERS, *TABLES])} files, and folders of data sets.{hint}"
        )
    return RowSource(source, path, path.parent)


def _keep_input(state: Path) -> Path:
    """What standard input holds, as a file that is named by its content. Where there is nothing now (a terminal, or an empty
    pipe), what the batch of this folder began with."""
    piped = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer
    first = b"" if piped is None else piped.readline(LONGEST)
    if piped is None or not first:
        return _begun_with(state)
    ending = ".jsonl" if first.lstrip().startswith(b"{") and _is_json(first) else ".txt"
    state.mkdir(parents=True, exist_ok=True)
    temporary = beside(state / f"input{ending}")
    try:
        with open(temporary, "xb") as file:
            file.write(first)
            shutil.copyfileobj(piped, file)
        path = state / f"input-{RowSource('-', temporary, None).digest()[:16]}{ending}"
        os.replace(temporary, path)
        sync(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _begun_with(state: Path) -> Path:
    try:
        digest = json.loads(read_text(state / "run.json"))["identity"]["input"]
    except (ValueError, KeyError, TypeError):
        digest = ""
    kept = next((path for path in state.glob("input-*") if RowSource("-", path, None).digest() == digest), None)
    if kept is None:
        raise ValueError("Nothing came from standard input; pipe prompts into it, one a line, or JSON lines.")
    return kept


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:  # `{a|b}` is a template
        return False


def read_lines(path: Path) -> Iterator[Row]:
    """A prompt a line; empty lines and those that begin with # are left out."""
    for number, line in _lines(path):
        if isinstance(line, BadLine):
            yield number, line
        elif (text := line.strip()) and not text.startswith("#"):
            yield number, {"prompt": text}


def read_json_lines(path: Path) -> Iterator[Row]:
    """An object a line."""
    for number, line in _lines(path):
        if isinstance(line, BadLine):
            yield number, line
        elif line.strip():
            try:
                row = json.loads(line, parse_constant=_no_constant)
            except (ValueError, RecursionError) as error:
                yield number, BadLine(f"it is no JSON ({error})")
                continue
            yield number, row if isinstance(row, dict) else BadLine("it is no JSON object, which has a name for every value")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


@contextlib.contextmanager
def _opened_table(path: Path) -> Iterator[tuple[io.TextIOWrapper, tuple[str, ...], str]]:
    """(text behind the line of names, the names, what separates cells: commas, semicolons or tabs, as the names have them)."""
    with opened(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        head = text.readline(LONGEST)
        separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
        names = tuple(name.strip() for name in next(csv.reader([head], delimiter=separator), []))
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"{path}: its first line must name every column once; it is {head.strip()[:200]!r}.")
        yield text, names, separator


def read_csv(path: Path) -> Iterator[Row]:
    """A table with a line of names; empty cells are left out."""
    with _opened_table(path) as (text, names, separator):
        reader = csv.reader(text, delimiter=separator, strict=True)
        while True:
            number = reader.line_num + 2
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield number, BadLine(f"it is no line of a table ({error})")
                continue
            if cells is None:
                return
            if not cells:
                continue
            if len(cells) != len(names):
                yield number, BadLine(f"it has {len(cells)} cells where {len(names)} columns are named")
            elif any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                yield number, BadLine("it is not UTF-8 text")
            else:
                yield number, {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}


def _lines(path: Path) -> Iterator[tuple[int, str | BadLine]]:
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST and not line.endswith(b"\n"):
                while (rest := file.readline(LONGEST)) and not rest.endswith(b"\n"):
                    pass
                yield number, BadLine(f"it has more than {LONGEST} characters")
                continue
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield number, BadLine("it is not UTF-8 text")


READERS = {".txt": read_lines, ".csv": read_csv, ".tsv": read_csv, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
