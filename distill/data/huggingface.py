"""Data sets read with the `datasets` library, which is optional: parquet and arrow files, never a script or a pickle.

Pictures come as the bytes that the data set holds and are decoded here, under the same limits as any file.
"""

from __future__ import annotations

import importlib
from typing import Any

from distill.data.decode import MAX_BYTES, probe
from distill.data.errors import DataError
from distill.data.files import sha256_of
from distill.data.images import clean_caption
from distill.data.pictures import PictureConfig, PictureItem, PictureSource
from distill.data.report import Report, Unusable

BUILDERS = ("parquet", "arrow")


class HuggingFaceConfig(PictureConfig):
    """path: a repository or a local folder, with its subset `name` and `revision`. columns: image; text and label may be absent
    (none). limit: read the first so many rows."""

    path: str
    name: str | None = None
    revision: str | None = None
    split: str = "train"
    image: str = "image"
    text: str | None = None
    label: str | None = None
    limit: int | None = None


class HuggingFace(PictureSource):
    """See the module."""

    def __init__(self, config: HuggingFaceConfig, seed: int):
        self.rows = open_rows(config)
        report = Report(config.path, config.on_error)
        items: list[PictureItem] = []
        count = len(self.rows) if config.limit is None else min(config.limit, len(self.rows))
        for index in range(count):
            try:
                row = self.rows[index]
                data = _bytes(row, config.image)
                width, height = probe(data, config.min_side)
                caption = clean_caption(_text(row, config.text))
                label = _label(row, config.label)
                items.append(PictureItem(f"row {index}", caption, label, width, height, index, sha256_of(data)))
                if config.text and not caption:
                    report.note("kept with an empty caption")
            except Unusable as error:
                report.drop(f"row {index}", str(error))
        super().__init__(items, lambda item: _bytes(self.rows[item.place], config.image), config, seed, report)


def open_rows(config: HuggingFaceConfig) -> Any:
    """The split as a random-access sequence of rows. DataError where it cannot be had."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            "A huggingface source needs the package datasets, which is not installed; install it with `pip install datasets`, "
            "or save the pictures as a folder and use type: images."
        ) from None
    where = {"name": config.name, "revision": config.revision}
    try:
        builder = datasets.load_dataset_builder(config.path, **where)
        if builder.name not in BUILDERS:
            raise DataError(
                f"{config.path} is of kind {builder.name!r}; only {', '.join(BUILDERS)} are read: convert it to parquet."
            )
        builder.download_and_prepare()
        rows = builder.as_dataset(split=config.split)
        missing = [c for c in (config.image, config.text, config.label) if c is not None and c not in rows.column_names]
        if missing:
            raise DataError(
                f"{config.path} has no column {missing[0]!r}; its columns are {', '.join(rows.column_names)}. Map them with "
                "image, text and label."
            )
        return rows.cast_column(config.image, datasets.Image(decode=False))
    except DataError:
        raise
    except Exception as error:  # a library of loaders raises anything
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{config.path} cannot be opened as a data set ({type(error).__name__}: {reason}).") from None


def _bytes(row: dict[str, Any], column: str) -> bytes:
    value = row[column]
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise Unusable("holds no bytes of a picture (a path is not followed; use type: images for files)")
    if len(data) > MAX_BYTES:
        raise Unusable(f"is larger than {MAX_BYTES >> 20} MiB")
    return data


def _text(row: dict[str, Any], column: str | None) -> str:
    value = row[column] if column else ""
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str | None):
        raise Unusable("has a caption that is not text")
    return value or ""


def _label(row: dict[str, Any], column: str | None) -> int:
    value = row[column] if column else -1
    if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value < 1 << 31:
        raise Unusable("has a label that is not a number from 0")
    return value
