"""The pictures of a folder, newest first: read back from the files themselves, so that whatever is put there is shown.

Names come from a browser, so each is looked up as the name of a file directly in the folder and as nothing else. What is
deleted goes to a folder `trash` in it, from which it can come back. Thumbnails are kept in `.thumbnails`, pictures that the
user gave in `.given`.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from gen.calls.names import slug
from gen.io.errors import RecipeError
from gen.pipeline.exif import FORMATS

if TYPE_CHECKING:
    from PIL.Image import Image

    from gen.pipeline.recipe import Recipe

TRASH, THUMBNAILS, GIVEN = "trash", ".thumbnails", ".given"
THUMBNAIL = 256  # pixels of the longer side
MOST_GIVEN = 64 * 1024 * 1024  # bytes of a picture that a user gives
SHOWN = tuple(dict.fromkeys(FORMATS.values()))
MOST_PIXELS = 64_000_000  # of one that a thumbnail is made of


@dataclass(frozen=True)
class FileKind:
    """How pictures are kept. suffix: of a format that holds recipes; quality: of one that loses some, 1 to 100, 90 if None."""

    suffix: str = ".png"
    quality: int | None = None


PNG = FileKind()


@dataclass(frozen=True)
class Entry:
    """A picture in the folder. changed: its time of change in nanoseconds, by which the newest is first."""

    name: str
    changed: int
    size: int


class Gallery:
    """A folder of pictures. It is made when the first one is saved."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder).absolute()
        self._lock = threading.Lock()

    def entries(self) -> list[Entry]:
        """All pictures, newest first."""
        found = []
        try:
            with os.scandir(self.folder) as files:
                for file in files:
                    if _is_name(file.name) and file.is_file(follow_symlinks=False):
                        state = file.stat()
                        found.append(Entry(file.name, state.st_mtime_ns, state.st_size))
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda entry: (entry.changed, entry.name), reverse=True)

    def path(self, name: str) -> Path:
        """The file of a picture; ValueError for a name that is none of this folder's."""
        path = self.folder / name if _is_name(name) else None
        try:
            if path is not None and stat.S_ISREG(os.lstat(path).st_mode):
                return path
        except (OSError, ValueError):
            pass
        raise ValueError(f"There is no picture {name!r:.80} in the gallery; it may have been moved or deleted.")

    def address(self, name: str, folder: str = "pictures") -> str:
        """Where a picture (or, of "thumbnails", its thumbnail) is served: another address once the file is another one."""
        try:
            changed = os.stat(self.path(name)).st_mtime_ns
        except (ValueError, OSError):
            changed = 0
        return f"/{folder}/{quote(name, safe='')}?{changed}"

    def recipe(self, name: str) -> Recipe:
        """What it was made with; RecipeError if it holds no recipe of ours."""
        from gen.pipeline.png import read_recipe

        return read_recipe(self.path(name))

    def save(self, image: Image, recipe: Recipe | None, kind: FileKind = PNG, label: str = "") -> str:
        """Keep a picture with its recipe under the first free name."""
        from gen.pipeline.png import free_name, save_image

        words = slug(label or (recipe.prompt if recipe else ""))
        stem = words if recipe is None else f"{words}-{recipe.seed}"
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            for _ in range(100):
                try:
                    return save_image(image, free_name(self.folder / f"{stem}{kind.suffix}"), recipe, quality=kind.quality).name
                except RecipeError as error:  # another program took the name in between
                    if not isinstance(error.__context__, FileExistsError):
                        raise
        raise ValueError(f"No free name for {stem}{kind.suffix} was found in {self.folder}; move some pictures away.")

    def delete(self, name: str) -> str:
        """Move a picture to the trash; its name there, which `restore` takes."""
        from gen.pipeline.png import free_name

        path = self.path(name)
        with self._lock:
            (self.folder / TRASH).mkdir(exist_ok=True)
            target = free_name(self.folder / TRASH / name)
            os.rename(path, target)
        return target.name

    def restore(self, name: str) -> str:
        """Bring a picture back from the trash; the name that it has now."""
        from gen.pipeline.png import free_name

        path = self.folder / TRASH / name if _is_name(name) else None
        if path is None or not path.is_file() or path.is_symlink():
            raise ValueError(f"{name!r:.80} is not in the trash any more.")
        with self._lock:
            target = free_name(self.folder / name)
            os.rename(path, target)
        return target.name

    def thumbnail(self, name: str) -> Path:
        """A small WebP of a picture, made when it is first asked for."""
        from PIL import Image

        path = self.path(name)
        state = os.stat(path)
        key = hashlib.sha256(f"{name}\0{state.st_mtime_ns}\0{state.st_size}".encode()).hexdigest()[:32]
        target = self.folder / THUMBNAILS / f"{key}.webp"
        if not target.is_file():
            try:
                with Image.open(path, formats=SHOWN) as picture:  # our own reader would wait for torch
                    if picture.width * picture.height > MOST_PIXELS:
                        raise ValueError(f"{name} has too many pixels to be shown.")
                    small = picture.convert("RGB")
            except (OSError, SyntaxError, Image.DecompressionBombError) as error:
                raise ValueError(f"{name} is no picture that can be shown ({error}).") from None
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            target.parent.mkdir(exist_ok=True)
            unfinished = target.with_suffix(f".{secrets.token_hex(4)}.tmp")
            small.save(unfinished, "WEBP", quality=85)
            os.replace(unfinished, target)
        return target

    def keep_given(self, data: bytes) -> Path:
        """Keep a picture that the user gave, under its content; ValueError if it cannot be read."""
        from PIL import UnidentifiedImageError

        from gen.io.images import FORMATS as READ
        from gen.io.images import flat, open_header
        from samplers.atomic import written

        if len(data) > MOST_GIVEN:
            raise ValueError(f"The picture has more than {MOST_GIVEN >> 20} MiB; give a smaller one.")
        target = self.folder / GIVEN / f"{hashlib.sha256(data).hexdigest()}.png"
        if not target.is_file():
            try:
                with open_header(io.BytesIO(data), READ) as picture:
                    clean = flat(picture)
            except UnidentifiedImageError:
                known = ", ".join(READ)
                raise ValueError(f"That file is no picture that can be read; give one of {known}.") from None
            except (OSError, SyntaxError, ValueError, EOFError) as error:
                raise ValueError(f"That picture cannot be read: {error}.".replace("..", ".")) from None
            target.parent.mkdir(parents=True, exist_ok=True)
            with written(target) as temporary, open(temporary, "xb") as file:
                clean.save(file, "PNG")  # of any format, as a PNG without its metadata
        return target

    def given(self, name: str) -> Path:
        """The file of a picture that the user gave; ValueError for any other name."""
        path = self.folder / GIVEN / name
        if not re.fullmatch(r"[0-9a-f]{64}\.png", name) or not path.is_file():
            raise ValueError(f"No picture {name!r:.80} was given.")
        return path


def media_type(name: str) -> str:
    """What a picture of the gallery is served as."""
    return f"image/{FORMATS[Path(name).suffix.lower()].lower()}"


def _is_name(name: str) -> bool:
    """Is this the plain, visible name of a picture in a format that holds recipes?"""
    plain = not name.startswith(".") and not any(c in name for c in "/\\\0:") and len(name) < 255
    return plain and Path(name).suffix.lower() in FORMATS
