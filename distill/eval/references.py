"""Pictures that are made once and kept: those of a teacher that students are compared with.

One PNG per picture, named by a hash of everything that it depends on, so that what changes is made again and nothing else; a
damaged file is made again too. All pictures pass through 8 bits, kept or new, so that numbers do not depend on which.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen.io.contact_sheet import to_pictures
from gen.io.errors import read_bytes
from gen.io.weights import write_bytes

LIMIT = 64_000_000  # pixels of a kept picture


def in_8_bits(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as a file of 8 bits per value holds them."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


class ReferencePictures:
    """Kept pictures (3, H, W) in [-1, 1] below a folder; None keeps nothing."""

    def __init__(self, folder: Path | str | None):
        self.folder = None if folder is None else Path(folder)

    def path(self, key: str) -> Path | None:
        """Where the picture of a key (a `digest`) is, or will be."""
        return None if self.folder is None else self.folder / key[:2] / f"{key[2:40]}.png"

    def read(self, key: str) -> Tensor | None:
        """The picture of a key; None where there is none, or a damaged one."""
        path = self.path(key)
        try:
            if path is None or not path.is_file():
                return None
            with Image.open(io.BytesIO(read_bytes(path, LIMIT * 4)), formats=["PNG"]) as picture:
                if picture.mode != "RGB" or picture.width * picture.height > LIMIT:
                    return None
                pixels = np.array(picture)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1

    def write(self, key: str, image: Tensor) -> None:
        """Keep a picture. Where the disk takes no more, a warning, and it is made again another time."""
        path = self.path(key)
        if path is None:
            return
        buffer = io.BytesIO()
        to_pictures(image[None])[0].save(buffer, format="PNG")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, buffer.getvalue())
        except OSError as error:
            self.folder = None
            warnings.warn(f"{path.parent} takes no more pictures ({error.strerror}); they are made each time.", stacklevel=2)

    def all(self, keys: Sequence[str], make: Callable[[list[int]], Iterable[tuple[int, Tensor]]]) -> tuple[Tensor, int]:
        """(the pictures of all keys (N, 3, H, W), how many of them were made): `make` gets the numbers of those missing and
        yields (number, picture) as they come, so that what is done stays done."""
        stored = {i: image for i, key in enumerate(keys) if (image := self.read(key)) is not None}
        missing = [i for i in range(len(keys)) if i not in stored]
        for i, image in make(missing) if missing else ():
            self.write(keys[i], image)
            stored[i] = in_8_bits(image.cpu())
        return torch.stack([stored[i] for i in range(len(keys))]), len(missing)
