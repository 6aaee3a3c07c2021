"""Where pictures go: names, checks before the work, and one way to print."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.calls.names import slug as slug

if TYPE_CHECKING:
    from gen.pipeline.output import Output
    from gen.pipeline.recipe import Recipe

WRITTEN = (".png", ".jpg", ".jpeg", ".webp", ".avif")  # formats that hold a recipe (gen.pipeline.exif.FORMATS)
_ENDING = re.compile(r"\.(?=.*[a-z])[a-z0-9]{1,5}")  # what is meant as the ending of a file's name: .gif, and not .5


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
        raise ValueError(f"{path}: sheets are saved as PNG; give a name that ends in .png.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    check_writable(path.parent)
    return path


@dataclass(frozen=True)
class OutputTarget:
    """Where `-o` says: one file's name, or a folder in which names are made from prompt and seed.

    suffix: of the names that are made.
    quality: of formats that lose some, None for the usual.
    """

    folder: Path
    name: str | None = None
    suffix: str = ".png"
    quality: int | None = None

    @classmethod
    def of(cls, output: Path | None, kind: str | None = None, quality: int | None = None) -> OutputTarget:
        """Checked before anything is generated; None is the current folder. kind: png, jpg, webp or avif; ValueError where the
        name says another, and for a quality outside of 1 to 100."""
        output = Path() if output is None else output
        suffix = _suffix(kind)
        ending = output.suffix.lower()
        if output.is_dir() or not (ending in WRITTEN or _ENDING.fullmatch(ending)):
            target = cls(output, None, suffix or WRITTEN[0], quality)
        elif ending in WRITTEN:
            if suffix is not None and _same(suffix) != _same(ending):
                raise ValueError(f"-o {output} says one format and --format {kind} another; give one of them.")
            target = cls(output.parent, output.name, ending, quality)
        else:
            raise ValueError(
                f"{output}: pictures are saved as PNG, JPEG, WebP or AVIF, which hold their recipe; give a name that ends in "
                f".png, .jpg, .webp or .avif, or make the folder {output} first."
            )
        if quality is not None and not 1 <= quality <= 100:
            raise ValueError(f"--quality is {quality}; give a number from 1 to 100.")
        if quality is not None and target.suffix == ".png":
            raise ValueError("--quality says nothing of a PNG, which keeps every pixel; give --format jpg, webp or avif too.")
        check_writable(target.folder)
        return target

    def path(self, label: str, seed: int, variation: int | None = None, among: str | None = None) -> Path:
        """The file of a picture.

        label: of names that are made: a prompt, and what else tells pictures apart.
        variation: its variation seed, if it has one.
        among: None for the only picture under the name that was given; of several, what tells it from those of the same seed.
        """
        if self.name is not None and among is None:
            return self.folder / self.name
        numbers = f"{seed}" if variation is None else f"{seed}-variation-{variation}"
        if self.name is None:
            return self.folder / f"{slug(label)}-{numbers}{self.suffix}"
        words = f"-{slug(among)}" if among else ""
        return self.folder / f"{Path(self.name).stem}{words}-{numbers}{Path(self.name).suffix}"

    def of_recipe(self, recipe: Recipe, label: str, among: str | None = None) -> Path:
        """`path`, of a picture with this recipe."""
        return self.path(label, recipe.seed, None if recipe.variation is None else recipe.variation.seed, among)


def _suffix(kind: str | None) -> str | None:
    if kind is None:
        return None
    suffix = f".{kind.lower().removeprefix('.')}"
    if suffix not in WRITTEN:
        from samplers.lookup import nearest

        known = [one.removeprefix(".") for one in WRITTEN]
        near = nearest(kind, known)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"Unknown format {kind!r:.80}{hint} Known: {', '.join(known)}.")
    return suffix


def _same(suffix: str) -> str:
    return ".jpg" if suffix == ".jpeg" else suffix


def save_free(image, path: Path, recipe=None, quality: int | None = None) -> Path:
    """Save under the first free name: nothing is ever overwritten."""
    from gen.io.errors import RecipeError
    from gen.pipeline.png import free_name, save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(100):
        try:
            return save_image(image, free_name(path), recipe, quality=quality)
        except RecipeError as error:
            if not isinstance(error.__context__, FileExistsError):
                raise
    raise ValueError(f"{path}: no free name was found in 100 attempts; choose another with -o.")


def save_all(result: Output, target: OutputTarget, label: str, several: bool) -> None:
    """Save pictures of a call under a label and their seeds, and print the paths. several: the call makes more than one."""
    for image, recipe in zip(result.images, result.recipes, strict=True):
        print(save_free(image, target.of_recipe(recipe, label, "" if several else None), recipe), flush=True)


def make_and_save(
    method: Callable[..., Any], target: OutputTarget, label: str, quiet: bool, /, *arguments: Any, **call: Any
) -> tuple[Any, str]:
    """Make pictures by a method of a `Generator`, and save them: (its output, "0.7 s on cpu")."""
    start = time.perf_counter()
    result = method(*arguments, progress=not quiet, **call)
    save_all(result, target, label, len(result.images) > 1)
    return result, f"{time.perf_counter() - start:.1f} s on {method.__self__.device}"  # type: ignore[attr-defined]
