"""Rows of Parquet files and of data sets of Hugging Face, in pieces of a thousand."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gen.batch.readers import HUB, Row
from gen.io.extras import install

PIECE = 1000  # rows


def arrow(module: str) -> Any:
    """A module of pyarrow; ValueError with the command that installs it."""
    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise ValueError(f"Parquet needs the package pyarrow: {install('batch')}.") from None


def _parquet_file(path: Path) -> Any:
    try:
        return arrow("parquet").ParquetFile(path)
    except (arrow("").ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}).") from None


def parquet_rows(path: Path) -> int:
    """How many rows a file has."""
    with _parquet_file(path) as file:
        return file.metadata.num_rows


def parquet_columns(path: Path) -> tuple[str, ...]:
    """The names of a file's columns."""
    with _parquet_file(path) as file:
        return tuple(file.schema_arrow.names)


def read_parquet(path: Path) -> Iterator[Row]:
    """Every row of a file; values that are missing are left out."""
    number = 0
    with _parquet_file(path) as file:
        for piece in file.iter_batches(PIECE):
            for row in piece.to_pylist():
                number += 1
                yield number, {name: value for name, value in row.items() if value is not None}


def _datasets() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise ValueError(f"Data sets of Hugging Face need the package datasets: {install('hub')}.") from None


def _opened_dataset(name: str) -> Any:
    """The data set of "hf:NAME", "hf:NAME:SPLIT" or a folder, as a stream; a folder that `save_to_disk` wrote as it is."""
    library = _datasets()
    name = name.removeprefix(HUB)
    name, split = (name, "train") if Path(name).is_dir() else (*name.rsplit(":", 1), "train")[:2]
    try:
        if Path(name, "state.json").is_file():
            return library.load_from_disk(name)
        return library.load_dataset(name, split=split, streaming=True)
    except Exception as error:
        raise ValueError(
            f"The data set {name} cannot be opened: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None


def dataset_columns(name: str) -> tuple[str, ...] | None:
    """The names of a data set's columns; None where it does not tell."""
    features = _opened_dataset(name).features
    return None if features is None else tuple(features)


def read_dataset(name: str) -> Iterator[Row]:
    """Every row of a data set. Its pictures are not decoded."""
    data = _opened_dataset(name)
    for column, feature in (data.features or {}).items():
        if type(feature).__name__ in ("Image", "Audio", "Video"):
            data = data.cast_column(column, type(feature)(decode=False))
    try:
        for number, row in enumerate(data, 1):
            yield number, {column: value for column, value in row.items() if value is not None}
    except Exception as error:
        raise ValueError(f"The data set {name} cannot be read on: {error}") from None


def dataset_version(name: str) -> str:
    """What tells this state of a data set of the hub from others: its commit where the hub tells it."""
    from huggingface_hub import HfApi

    repository = name.removeprefix(HUB).rsplit(":", 1)[0]
    try:
        return f"{name}@{HfApi().dataset_info(repository, timeout=10).sha}"
    except Exception as error:
        raise ValueError(f"The hub does not answer for the data set {repository}: {error}") from None
