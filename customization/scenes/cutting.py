"""Concepts cut out of their pictures: layers (1, 4, H, W) with colours times alpha, no larger than what is seen of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gen.io.alpha import premultiply
from gen.io.images import read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SEEN = 0.5 / 255  # opacity that is seen
LEAST = 4  # pixels that a thing has at least on each side
Segment = Callable[[Any, str], Any]  # (a PIL picture, the concept's name) -> a mask (H, W) in [0, 1]
Separate = Callable[[Tensor], Tensor]  # pictures (1, 3, H, W) in [0, 1] -> opacities (1, 1, H, W)


@dataclass(frozen=True)
class Cutout:
    """One view of a concept, from a file. layer: (1, 4, H, W), colours times alpha, cropped to what is seen."""

    file: str
    layer: Tensor


@dataclass(frozen=True)
class SingleConcept:
    """A concept as it was given: its name in captions ("cat", "<tom> cat"), its views, and its size beside others."""

    name: str
    views: tuple[Cutout, ...]
    size: float = 1.0


def cut_folder(
    name: str, folder: Path, *, masks: Path | None = None, segment: Segment | None = None, separate: Separate | None = None
) -> tuple[Cutout, ...]:
    """A view for every picture of a folder.

    Where a thing is says, in this order: masks, a folder of pictures of the same names as PNG, white on it; the picture's own
    alpha; `segment`; `separate`. ValueError for a folder without pictures, and for a picture of which nothing or all is left
    unsaid.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} has no pictures of {name!r}; give a folder of PNG, JPEG, WebP or BMP files.")
    return tuple(Cutout(path.name, cut(name, path, masks, segment, separate)) for path in files)


def cut(name: str, path: Path, masks: Path | None, segment: Segment | None, separate: Separate | None) -> Tensor:
    """The layer of one picture, cropped."""
    picture = read_picture(str(path), path, "RGB").double()
    size = tuple(picture.shape[2:])
    if masks is not None and (masks / f"{path.stem}.png").is_file():
        alpha = read_picture(f"The mask of {path}", masks / f"{path.stem}.png", "L").double()
    elif (own := own_alpha(path)) is not None:
        picture, alpha = own[:, :3], own[:, 3:]
    elif segment is not None:
        with Image.open(path) as opened:
            alpha = read_picture(f"The mask of {path}", segment(opened.convert("RGB"), name), "L").double()
    elif separate is not None:
        alpha = separate(picture).double()
    else:
        raise ValueError(f"Nothing says where {name!r} is in {path}; give masks, pictures with alpha, or a segmentation model.")
    if tuple(alpha.shape[2:]) != size:
        raise ValueError(
            f"The mask of {path} is {alpha.shape[3]} x {alpha.shape[2]}, and the picture {size[1]} x {size[0]}; give equal."
        )
    return cropped(premultiply(torch.cat([picture, alpha], 1)), str(path))


def own_alpha(path: Path) -> Tensor | None:
    """(1, 4, H, W), straight, of a picture that is transparent somewhere; None for others."""
    import numpy as np

    with Image.open(path) as opened:
        if opened.mode not in ("RGBA", "LA") and "transparency" not in opened.info:
            return None
        array = np.asarray(opened.convert("RGBA"))
    if int(array[..., 3].min()) == 255:
        return None
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].double() / 255


def cropped(layer: Tensor, what: str) -> Tensor:
    """The part of a layer (1, 4, H, W) that is seen. ValueError where that is next to nothing."""
    seen = layer[0, 3] > SEEN
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    if min(len(rows), len(columns)) < LEAST:
        raise ValueError(f"Hardly anything is seen of the thing in {what}; give its mask, white where it is.")
    return layer[:, :, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def named_folders(texts: Sequence[str]) -> dict[str, Path]:
    """name -> folder of NAME=FOLDER texts; a folder alone gives its own name."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.rpartition("=")
        if not equals:
            name = Path(folder).name.replace("_", " ")
        if not name.strip() or not folder or name in found:
            raise ValueError(f"{text!r}: write each concept once, as NAME=FOLDER, for example cat=photos/cat.")
        found[name.strip()] = Path(folder)
    return found
