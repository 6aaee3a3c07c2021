"""Where pictures go: names, checks before the work, and one way to print."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.calls.names import slug as slug

OTHER_FORMATS = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".svg"}


def say(message: str, quiet: bool = False) -> None:
    """To stderr: stdout is for the paths of what was made."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


def exit_code(stop: KeyboardInterrupt) -> int:
    """130 after Ctrl-C, 143 after SIGTERM, which `gen.cli.app` makes an interrupt of its own."""
    return 143 if type(stop) is not KeyboardInterrupt else 130


def check_writable(folder: Path) -> None:
    """ValueError unless files can be made in this folder, or in it once it is made."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"{place} is not a folder, so nothing can be saved in {folder}; choose another with -o.")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}); choose another with -o.") from None


def check_png(path: Path) -> Path:
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: pictures are saved as PNG, which holds their recipe; give a name that ends in .png.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    check_writable(path.parent)
    return path


@dataclass(frozen=True)
class OutputTarget:
    """Where `-o` says: one file's name, or a folder in which names are made from prompt and seed."""

    folder: Path
    name: str | None = None

    @classmethod
    def of(cls, output: Path | None) -> OutputTarget:
        """Checked before anything is generated; None is the current folder."""
        output = Path() if output is None else output
        if output.is_dir():
            target = cls(output)
        elif output.suffix.lower() == ".png":
            target = cls(output.parent, output.name)
        elif output.suffix.lower() in OTHER_FORMATS:
            raise ValueError(f"{output}: pictures are saved as PNG, which holds their recipe; give a name that ends in .png.")
        else:
            target = cls(output)
        check_writable(target.folder)
        return target

    def path(self, prompt: str, seed: int) -> Path:
        return self.folder / (self.name or f"{slug(prompt)}-{seed}.png")


def save_free(image, path: Path, recipe=None) -> Path:
    """Save under the first free name: nothing is ever overwritten."""
    from gen.io.errors import RecipeError
    from gen.pipeline.png import free_name, save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        try:
            return save_image(image, free_name(path), recipe)
        except RecipeError as error:
            if not isinstance(error.__context__, FileExistsError):
                raise
    raise ValueError(f"{path}: no free name was found in 100 attempts; choose another with -o.")


def save_all(result, target: OutputTarget, label: str) -> None:
    """Save a call's pictures under a label and their seeds, and print the paths."""
    for image, recipe in zip(result.images, result.recipes, strict=True):
        print(save_free(image, target.path(label, recipe.seed), recipe), flush=True)


def make_and_save(
    method: Callable[..., Any], target: OutputTarget, label: str, quiet: bool, *arguments: Any, **call: Any
) -> tuple[Any, str]:
    """Make pictures by a method of a `Generator`, and save them: (its output, "0.7 s on cpu")."""
    start = time.perf_counter()
    result = method(*arguments, progress=not quiet, **call)
    save_all(result, target, label)
    return result, f"{time.perf_counter() - start:.1f} s on {method.__self__.device}"  # type: ignore[attr-defined]
