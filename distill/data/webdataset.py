"""Pictures in tar shards, the WebDataset way: files that share a name up to the first dot are one sample.

A picture (png, jpg, jpeg, webp), and beside it txt (the caption), json (caption or text, and label) or cls (the class's
number). Other kinds of file are counted and never opened. Shards are local, uncompressed files; every picture is read by its
offset, so that any order costs the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from distill.data.decode import MAX_BYTES, probe
from distill.data.errors import DataError
from distill.data.files import read_below, sha256_of
from distill.data.images import CAPTION_LIMIT, LINE_LIMIT, clean_caption
from distill.data.pictures import PictureConfig, PictureItem, PictureSource
from distill.data.report import Report, Unusable
from distill.data.tar import TarMember, members
from gen.io.errors import decode_text

PICTURES = ("png", "jpg", "jpeg", "webp")
TEXTS = {"txt": CAPTION_LIMIT, "json": LINE_LIMIT, "cls": 64}
SHARD_LIMIT = 100_000
_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


class WebDatasetConfig(PictureConfig):
    """shards: file names, in which {000..123} counts and * stands for any letters. missing_caption: keep a picture without one,
    or drop it."""

    shards: str | tuple[str, ...]
    missing_caption: Literal["keep", "drop"] = "keep"


class WebDataset(PictureSource):
    """See the module."""

    def __init__(self, config: WebDatasetConfig, seed: int):
        patterns = (config.shards,) if isinstance(config.shards, str) else config.shards
        shards = [path for pattern in patterns for path in find_shards(pattern)]
        report = Report(" ".join(patterns), config.on_error)
        items: list[PictureItem] = []
        for shard in shards:
            try:
                for key, parts in samples(shard, report):
                    self._add(items, config, report, shard, key, parts)
            except (Unusable, OSError) as error:
                report.drop(str(shard), getattr(error, "strerror", None) or str(error))
        super().__init__(items, _read, config, seed, report)

    def _add(
        self,
        items: list[PictureItem],
        config: WebDatasetConfig,
        report: Report,
        shard: Path,
        key: str,
        parts: dict[str, TarMember],
    ) -> None:
        name = f"{shard.name}/{key}"
        try:
            picture = next((parts[kind] for kind in PICTURES if kind in parts), None)
            if picture is None:
                raise Unusable("has no picture (png, jpg, jpeg, webp)")
            place = (shard, picture.offset, picture.size)
            data = _bytes(shard, picture, MAX_BYTES)
            width, height = probe(data, config.min_side)
            caption, label = _described(shard, parts)
            if not caption and config.missing_caption == "drop":
                raise Unusable("has no caption")
            items.append(PictureItem(name, caption, label, width, height, place, sha256_of(data)))
            if not caption:
                report.note("kept with an empty caption")
        except Unusable as error:
            report.drop(name, str(error))


def find_shards(pattern: str) -> list[Path]:
    """The files that a pattern names. DataError where there is none, or where it is an address."""
    if "://" in pattern or pattern.startswith("pipe:"):
        raise DataError(f"{pattern!r} is not a file name; download the shards first, as only local files are read.")
    names, match = [pattern], _RANGE.search(pattern)
    if match:
        first, last = int(match[1]), int(match[2])
        if not 0 <= last - first < SHARD_LIMIT:
            raise DataError(f"{pattern!r} counts from {first} to {last}; that is backwards, or more than {SHARD_LIMIT} shards.")
        numbers = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
        names = [pattern[: match.start()] + number + pattern[match.end() :] for number in numbers]
    paths = []
    for name in names:
        path = Path(name)
        paths += sorted(path.parent.glob(path.name)) if "*" in path.name else [path]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise DataError(f"{missing[0] if missing else pattern} does not exist; check the shards' names.")
    return paths


def samples(shard: Path, report: Report) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """(key, its members by kind) of a shard's samples, in order."""
    grouped: dict[str, dict[str, TarMember]] = {}
    for member in members(shard):
        if member.problem:
            report.drop(f"{shard.name}/{member.name}", member.problem)
            continue
        folder, slash, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        kind = kind.lower()
        if kind not in PICTURES and kind not in TEXTS:
            report.note(f"of a kind that is not read (.{kind[:16]})")
            continue
        parts = grouped.setdefault(folder + slash + stem, {})
        if kind in parts:
            report.drop(f"{shard.name}/{member.name}", "is in the shard twice; the first one counts")
            continue
        parts[kind] = member
    yield from grouped.items()


def _bytes(shard: Path, member: TarMember, limit: int) -> bytes:
    return read_below(shard.parent, shard.name, limit, member.offset, member.size)


def _read(item: PictureItem) -> bytes:
    shard, offset, size = item.place
    return read_below(shard.parent, shard.name, MAX_BYTES, offset, size)


def _described(shard: Path, parts: dict[str, TarMember]) -> tuple[str, int]:
    """(caption, class or -1) of a sample."""
    caption, label = "", -1
    try:
        if "txt" in parts:
            caption = decode_text(_bytes(shard, parts["txt"], TEXTS["txt"]))
        if "json" in parts:
            row = json.loads(decode_text(_bytes(shard, parts["json"], TEXTS["json"])))
            if not isinstance(row, dict):
                raise Unusable("has a json file that is not an object")
            caption = caption or row.get("text", row.get("caption", "")) or ""
            label = row.get("label", -1)
        if "cls" in parts:
            label = int(decode_text(_bytes(shard, parts["cls"], TEXTS["cls"])))
    except Unusable as error:
        raise Unusable(f"has a caption or class that {error}") from None
    except (ValueError, RecursionError):
        raise Unusable("has a caption or class that cannot be read") from None
    if not isinstance(caption, str):
        raise Unusable("has a caption that is not text")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < 1 << 31:
        raise Unusable("has a class that is not a number from 0")
    return clean_caption(caption), label
