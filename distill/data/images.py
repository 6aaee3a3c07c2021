"""Pictures in a folder, with captions from `metadata.jsonl`, from `.txt` or `.caption` files of the same name, or from the
folders' names.

metadata.jsonl has one JSON object per line: file_name, and text or caption, and label (a number, or a class's name). Without
it, subfolders are classes, numbered in the order of their names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from distill.data.decode import MAX_BYTES, probe
from distill.data.errors import DataError
from distill.data.files import read_below, sha256_of
from distill.data.pictures import PictureConfig, PictureItem, PictureSource
from distill.data.report import Report, Unusable
from gen.io.errors import decode_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")
METADATA = "metadata.jsonl"
BESIDE = (".txt", ".caption")  # in any case; the first counts where a picture has both
CAPTION_LIMIT = 16 << 10  # bytes
LINE_LIMIT = 1 << 20
DEPTH = 16


class ImagesConfig(PictureConfig):
    """captions: auto takes metadata.jsonl if it is there, else .txt and .caption files if any picture has one (txt), else the
    names of subfolders if there are any, else none. missing_caption: keep such a picture with an empty caption, or drop it."""

    folder: Path
    captions: Literal["auto", "metadata", "txt", "folder", "none"] = "auto"
    missing_caption: Literal["keep", "drop"] = "keep"


def walk(root: Path, report: Report, below: str = "", depth: int = 0) -> Iterator[str]:
    """The names of files below a root, sorted, hidden ones left out; links to folders are not followed."""
    try:
        entries = sorted(os.scandir(root / below), key=lambda entry: entry.name)
    except OSError as error:
        report.drop(below or ".", f"is a folder that cannot be listed ({error.strerror})")
        return
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if depth < DEPTH:
                yield from walk(root, report, name, depth + 1)
            else:
                report.drop(name, f"is more than {DEPTH} folders deep")
        elif entry.is_symlink() and entry.is_dir():
            report.drop(name, "is a link to a folder")
        else:
            yield name


class ImageFolder(PictureSource):
    """See the module."""

    def __init__(self, config: ImagesConfig, seed: int):
        self.root = config.folder
        if not config.folder.is_dir():
            raise DataError(
                f"{config.folder} is not a folder; give the folder that holds the pictures. "
                "Where a config of the repository names it, the config's first lines say how to get it."
            )
        report = Report(str(config.folder), config.on_error)
        names = list(walk(config.folder, report))
        pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
        beside = _beside(names, pictures)
        kind = config.captions if config.captions != "auto" else _found(names, pictures, beside)
        if kind == "metadata":
            rows: list[tuple[str, str | None, int]] = list(_metadata(config.folder, report, set(names)))
        else:
            classes = sorted({name.partition("/")[0] for name in pictures if "/" in name})
            numbers = {name: i for i, name in enumerate(classes)}
            rows = [(name, None, numbers.get(name.partition("/")[0], -1)) for name in pictures]
        with ThreadPoolExecutor(config.threads) as pool:
            made = pool.map(lambda row: _item(config, kind, beside.get(row[0]), *row), rows)
            items = []
            for row, item in zip(rows, made, strict=True):
                if isinstance(item, PictureItem):
                    items.append(item)
                    ending = Path(beside.get(row[0], "")).suffix if kind == "txt" else ""
                    if ending not in ("", ".txt"):
                        report.note(f"with a caption from a {ending} file")
                    if kind != "none" and not item.caption:
                        report.note("kept with an empty caption")
                else:
                    report.drop(row[0], item)
        self.captions = kind
        super().__init__(items, lambda item: read_below(config.folder, item.name, MAX_BYTES), config, seed, report)


def _beside(names: list[str], pictures: list[str]) -> dict[str, str]:
    """The file with the caption of each picture that has one."""
    texts_of: dict[str, dict[str, str]] = {}
    for name in names:
        if (kind := Path(name).suffix.lower()) in BESIDE:
            texts = texts_of.setdefault(str(Path(name).with_suffix("")), {})
            texts[kind] = min(texts.get(kind, name), name, key=lambda each: (not each.endswith(kind), each))
    chosen = {}
    for name in pictures:
        files = texts_of.get(str(Path(name).with_suffix("")), {})
        if files:
            chosen[name] = next(files[kind] for kind in BESIDE if kind in files)
    return chosen


def _found(names: list[str], pictures: list[str], beside: dict[str, str]) -> str:
    if METADATA in set(names):
        return "metadata"
    if beside:
        return "txt"
    return "folder" if any("/" in name for name in pictures) else "none"


def _item(config: ImagesConfig, kind: str, beside: str | None, name: str, text: str | None, label: int) -> PictureItem | str:
    """The item, or why it cannot be one. beside: the file with its caption."""
    try:
        data = read_below(config.folder, name, MAX_BYTES)
        width, height = probe(data, config.min_side)
        if kind == "txt":
            text = _text(config.folder, beside) if beside is not None else ""
        elif kind == "folder":
            text = Path(name).parts[0].replace("_", " ") if "/" in name else ""
        text = clean_caption(text or "")
    except Unusable as error:
        return str(error)
    if not text and kind != "none" and config.missing_caption == "drop":
        return "has no caption"
    return PictureItem(name, text, label, width, height, digest=sha256_of(data))


def _text(root: Path, name: str) -> str:
    try:
        return decode_text(read_below(root, name, CAPTION_LIMIT))
    except UnicodeDecodeError:
        raise Unusable("has a caption file that is not UTF-8") from None
    except Unusable as error:
        raise Unusable(f"has a caption file that {error}") from None


def clean_caption(text: str) -> str:
    """One line; Unusable for one that is too long or holds half a character."""
    if len(text) > CAPTION_LIMIT:
        raise Unusable(f"has a caption of more than {CAPTION_LIMIT >> 10} KiB")
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise Unusable("has a caption with half a surrogate pair")
    return " ".join(text.split())


def _metadata(root: Path, report: Report, present: set[str]) -> Iterator[tuple[str, str, int]]:
    """(file name, caption, class) of each good row."""
    rows: list[tuple[str, str, Any]] = []
    seen: set[str] = set()
    try:
        lines = read_below(root, METADATA, 1 << 30).split(b"\n")
    except Unusable as error:
        raise DataError(f"{root / METADATA} {error}; mend it, or remove it.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(parse_row(line, seen))
        except Unusable as error:
            report.drop(f"{METADATA}, line {number}", str(error))
    names = sorted({label for _, _, label in rows if isinstance(label, str)})
    numbers = {name: i for i, name in enumerate(names)}
    for name, text, label in rows:
        yield name, text, numbers[label] if isinstance(label, str) else -1 if label is None else label
    for name in sorted(present - seen):
        if name.lower().endswith(SUFFIXES):
            report.drop(name, f"has no line in {METADATA}")


def parse_json(line: bytes) -> Any:
    """The value of a line of JSON; Unusable for one that is too long or no JSON."""
    if len(line) > LINE_LIMIT:
        raise Unusable("is longer than 1 MiB")
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Unusable("is not JSON") from None


def parse_row(line: bytes, seen: set[str]) -> tuple[str, str, int | str | None]:
    """(file name, caption, label) of a line of metadata.jsonl; other keys are left alone."""
    row = parse_json(line)
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise Unusable("is not an object with a file_name")
    name, label = PurePosixPath(row["file_name"]).as_posix(), row.get("label")
    text = row.get("text", row.get("caption", ""))
    if not isinstance(text, str | None):
        raise Unusable("has a caption that is not text")
    if (
        isinstance(label, bool)
        or not isinstance(label, int | str | None)
        or (isinstance(label, int) and not 0 <= label < 1 << 31)
    ):
        raise Unusable("has a label that is neither a number from 0 nor a name")
    if name in seen:
        raise Unusable("names a file that an earlier line names")
    seen.add(name)
    return name, text or "", label
