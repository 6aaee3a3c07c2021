"""Pictures into files of many, each written in one piece from pictures that wait on disk: WebDataset's tar files and Parquet.

File k holds the pictures k * per_file and on, in order, so that its bytes are the same however often the batch was stopped, and
whichever process wrote it. Once it is in place and in the ledger, the pictures that waited are removed.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gen.batch.ledger import Ledger
from gen.batch.settings import BatchSettings
from gen.batch.store import staged_file
from gen.batch.tables import arrow
from gen.pipeline.png import CHUNK as RECIPE
from gen.pipeline.png import PLACE, read_chunks
from samplers.atomic import written

ROW_GROUP = 64  # pictures that are in memory together


def record_of(path: Path) -> dict[str, Any]:
    """What is known of a picture: its number and line, its recipe, columns that were carried along."""
    chunks = read_chunks(path)
    place, recipe = json.loads(chunks[PLACE]), json.loads(chunks[RECIPE])
    return {
        "index": place["index"],
        "line": place["line"],
        "prompt": recipe.get("prompt", ""),
        "seed": recipe["seed"],
        "columns": place["columns"],
        "recipe": recipe,
    }


def write_tar(target: Path, pictures: Sequence[Path]) -> None:
    """A shard as the webdataset library reads it: KEY.png and KEY.json for each, the key being the picture's number."""
    with open(target, "xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in pictures:
            record = json.dumps(record_of(path)).encode()
            for ending, data in ((".png", path.read_bytes()), (".json", record)):
                entry = tarfile.TarInfo(path.stem + ending)  # no time, no owner: equal pictures are equal bytes
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))


def write_parquet(target: Path, pictures: Sequence[Path]) -> None:
    """A table with the columns image (as `datasets` has it: bytes and path), prompt, seed, index, line, columns and recipe, the
    last two as JSON."""
    pa, parquet = arrow(""), arrow("parquet")
    features = {"image": {"_type": "Image"}, **{name: {"dtype": "string", "_type": "Value"} for name in ("prompt",)}}
    features |= {name: {"dtype": "int64", "_type": "Value"} for name in ("seed", "index", "line")}
    features |= {name: {"dtype": "string", "_type": "Value"} for name in ("columns", "recipe")}
    kinds = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "prompt": pa.string()}
    kinds |= {name: pa.int64() for name in ("seed", "index", "line")} | {name: pa.string() for name in ("columns", "recipe")}
    schema = pa.schema(kinds, metadata={"huggingface": json.dumps({"info": {"features": features}})})
    with parquet.ParquetWriter(target, schema) as writer:
        left = iter(pictures)
        while some := list(islice(left, ROW_GROUP)):
            rows = []
            for path in some:
                record = record_of(path)
                image = {"bytes": path.read_bytes(), "path": path.name}
                rows.append({**record, "image": image, **{name: json.dumps(record[name]) for name in ("columns", "recipe")}})
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


WRITERS: dict[str, tuple[str, Callable[[Path, Sequence[Path]], None]]] = {
    "webdataset": (".tar", write_tar),
    "parquet": (".parquet", write_parquet),
}


class Packer:
    """Writes files of many pictures as soon as theirs are all there."""

    def __init__(self, settings: BatchSettings, ledger: Ledger):
        self.settings, self.ledger = settings, ledger
        self.ending, self.write = WRITERS[settings.kind]
        if settings.kind == "parquet":
            arrow("parquet")
        self._next = 0

    def pack_until(self, index: int) -> None:
        """Write every file whose pictures come before `index` or end with it; all of those are made, or failed."""
        self._pack((index + 1) // self.settings.per_file)

    def pack_rest(self) -> None:
        """Write every file, the last one with what there is: no more pictures come."""
        self._pack(-(-self.ledger.done.end // self.settings.per_file))

    def _pack(self, end: int) -> None:
        for block in range(self._next, end):
            if self.settings.share.takes(block):
                self._pack_one(block)
        self._next = max(end, self._next)

    def _pack_one(self, block: int) -> None:
        waiting = list(self._waiting(block))
        if waiting and block not in self.ledger.packed:
            target = self.settings.output / f"pictures-{block:05d}{self.ending}"
            with written(target) as temporary:
                self.write(temporary, waiting)
            self.ledger.add([{"packed": block, "file": target.name, "pictures": len(waiting)}])
        for path in waiting:
            path.unlink()
        for folder in {path.parent for path in waiting}:
            with contextlib.suppress(OSError):  # others wait in it
                folder.rmdir()

    def _waiting(self, block: int) -> Iterator[Path]:
        first = block * self.settings.per_file
        for index in range(first, first + self.settings.per_file):
            if index in self.ledger.done and (path := staged_file(self.settings.output, index)).exists():
                yield path
