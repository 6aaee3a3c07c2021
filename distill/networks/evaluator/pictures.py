"""The pictures of an emoji archive as tensors: plain, on white."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.emoji.archive import read_archive
from distill.data.errors import DataError


def read_pictures(path: Path | str, size: int, labels: Collection[str] | None = None) -> tuple[Tensor, list[str]]:
    """(pictures (N, 3, size, size) in [-1, 1], their N labels) of an archive, optionally of some labels only."""
    records, data, _ = read_archive(path)
    chosen = [i for i, record in enumerate(records) if labels is None or record.label in labels]
    if not chosen:
        raise DataError(f"{path} has no picture of the labels asked for.")
    pictures = torch.empty(len(chosen), 3, size, size)
    for row, i in enumerate(chosen):
        try:
            picture = Image.open(io.BytesIO(data[i]), formats=["WEBP"])
            if max(picture.size) > 4096:
                raise ValueError(f"its size is {picture.size}")
            rgba = picture.convert("RGBA")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{path}: {records[i].file_name} is not a usable WebP picture ({error}).") from None
        white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        if white.size != (size, size):
            white = white.resize((size, size), Image.Resampling.BOX if min(white.size) >= size else Image.Resampling.BICUBIC)
        pictures[row] = torch.from_numpy(np.asarray(white).copy()).permute(2, 0, 1) / 127.5 - 1
    return pictures, [records[i].label for i in chosen]
