"""The picture of a recipe made again, and whether it came out the same."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen.calls.adapters import put_adapters
from gen.calls.call import Call
from gen.io.errors import printable


def replay(generator: Any, path: Path, adapter_files: Mapping[str, Path]) -> str:
    """What a replay of a picture's file came to, in a sentence; ValueError where it cannot be made."""
    import numpy as np

    from gen.io.images import open_picture
    from gen.pipeline.png import READ, read_recipe

    recipe = read_recipe(path)
    call, _ = Call.from_recipe(recipe, adapter_files)
    put_adapters(generator, call.adapters)
    name = generator.name
    try:
        generator.name = recipe.model.name
        made = generator.replay(recipe, progress=False)
    finally:
        generator.name = name
    if path.read_bytes() in (_file(made, path.suffix, quality) for quality in _qualities(path.suffix)):
        return "Made again: equal to the last byte."
    with open_picture(path, READ) as picture:
        before = np.asarray(picture.convert("RGB"), dtype=np.int16)
    after = np.asarray(made.images[0].convert("RGB"), dtype=np.int16)
    if before.shape != after.shape:
        return f"Made again: the file is {before.shape[1]} x {before.shape[0]}, its recipe {recipe.width} x {recipe.height}."
    difference = np.abs(before - after)
    changed = [name for name, value in recipe.machine.model_dump().items() if value != getattr(made.recipes[0].machine, name)]
    why = f" What computed it is not the same: {printable(', '.join(changed))}." if changed else ""
    if not difference.any():
        return f"Made again: the same in every pixel; only the file around them differs.{why}"
    share = (difference.max(-1) > 0).mean()
    lossy = "" if path.suffix.lower() == ".png" else f" A {path.suffix[1:]} keeps pixels only nearly."
    return f"Made again: {share:.1%} of the pixels differ, by at most {difference.max()} of 255.{why}{lossy}"


def _file(made: Any, suffix: str, quality: int | None) -> bytes:
    """The file of a picture, as it was saved."""
    from gen.pipeline.png import save_image

    with tempfile.TemporaryDirectory() as folder:
        return save_image(made.images[0], Path(folder) / f"made{suffix}", made.recipes[0], quality=quality).read_bytes()


def _qualities(suffix: str) -> tuple[int | None, ...]:
    """The usual ones, which are tried: a file does not say which it has."""
    return (None,) if suffix.lower() == ".png" else (None, 100)
