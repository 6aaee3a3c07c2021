"""`fewstep replay`: make the picture of a recipe again and say whether it came out the same."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.image import add_energies
from gen.cli.output import OutputTarget, save_free, say
from gen.io.errors import printable
from gen.io.images import PictureError, flat, open_picture
from gen.pipeline.png import READ, read_recipe
from gen.pipeline.recipe import Machine, Recipe
from gen.pipeline.work import check_work

if TYPE_CHECKING:
    import numpy as np


def run(
    path: Path,
    *,
    output: Path | None,
    model: str | None,
    parts: Mapping[str, Any],
    device: str | None,
    dtype: str | None,
    tasks: Mapping[str, Any],
    lora: Sequence[str],
    quiet: bool,
    allow_nonfinite: bool = False,
    max_work: float | None = None,
) -> int:
    """Exit code 0 if every pixel is the same, 1 if not. tasks: what the recipe does not hold, as keywords of a replay."""
    recipe = read_recipe(path)
    check_work(recipe, max_work)
    own_name = f"{path.stem}-replay.png"
    place = OutputTarget.of(path.with_name(own_name) if output is None else output)
    target = place.folder / (place.name or own_name)
    before = _pixels(path)
    from gen.models.pretrained import PACKAGED

    if model is None and recipe.model.name not in PACKAGED:  # a file from outside must not choose what is opened or downloaded
        raise ValueError(f"{path} was made with the model {printable(recipe.model.name)!r}; say where it is with --model.")

    import numpy as np
    import torch

    from gen.generator import Generator
    from gen.models.attention_choice import from_record

    arguments = dict(parts)
    if recipe.machine.attention.startswith("diffusers"):  # a pipeline's own network made it
        arguments["native"] = False
    elif recipe.machine.attention and _native_by_choice(model):
        arguments["native"] = True
    if recipe.machine.quantize is not None:
        arguments.setdefault("quantize", recipe.machine.quantize)
    if recipe.machine.vae_tile is not None:
        arguments.setdefault("vae_tile", recipe.machine.vae_tile)
    if recipe.machine.compile is not None:
        arguments.setdefault("compile", recipe.machine.compile)
    if "decoder" in recipe.model.weights:
        arguments.setdefault("decoder", "tiny")
    generator = Generator.from_pretrained(
        model or recipe.model.name, device or _device(recipe), dtype or recipe.machine.dtype, **arguments
    )
    if recipe.model.weights and generator.weights != recipe.model.weights:
        changed = sorted(k for k in recipe.model.weights if generator.weights.get(k) != recipe.model.weights[k])
        say(f"Note: the weights of the model's {', '.join(map(printable, changed))} are not the ones it was made with.", quiet)
    if recipe.unrecorded:
        say(f"Note: the recipe does not hold the {printable(', '.join(recipe.unrecorded))}, so the picture will differ.", quiet)
    if hasattr(generator.network, "attention_backend"):
        generator.network.attention_backend = from_record(recipe.machine.attention)
    if generator.device.type == "cpu" and recipe.machine.threads:
        torch.set_num_threads(min(recipe.machine.threads, os.cpu_count() or 1))
    generator.name = recipe.model.name
    if lora:
        from gen.cli.lora import load_recorded

        load_recorded(generator, recipe, lora, quiet, allow_nonfinite)

    add_energies(generator)
    made = generator.replay(recipe, progress=not quiet, max_work=max_work, **tasks)
    copy = save_free(made.images[0], target, made.recipes[0])
    print(copy, flush=True)
    if copy.read_bytes() == path.read_bytes():
        say("Identical to the last byte.", quiet)
        return 0
    difference = (
        np.abs(before - np.asarray(made.images[0], dtype=np.int16))
        if before.shape[:2] == (recipe.height, recipe.width)
        else None
    )
    changes = machine_changes(recipe, made.recipes[0].machine)
    why = f" Made with {changes}." if changes else ""
    if difference is None:
        say(
            f"Different: the file is {before.shape[1]} x {before.shape[0]}, its recipe {recipe.width} x {recipe.height}.", quiet
        )
        return 1
    if not keeps_pixels(path):
        kind = path.suffix.lstrip(".").upper()
        say(
            f"{path} is a {kind}, which keeps pixels only nearly, so they cannot be compared: they differ by "
            f"{difference.mean():.1f} of 255 on average, by at most {difference.max()}. The replay is the picture before "
            f"that.{why}",
            quiet,
        )
        return 0
    if not difference.any():
        say(f"The same in every pixel; only the file around them differs.{why}", quiet)
        return 0
    share = (difference.max(-1) > 0).mean()
    say(f"Different: {share:.1%} of the pixels, by at most {difference.max()} of 255.{why}", quiet)
    return 1


def keeps_pixels(path: Path) -> bool:
    """Is it a PNG, or a WebP without loss?"""
    with open_picture(path, READ) as picture:
        kind = picture.format
    if kind != "WEBP":
        return kind == "PNG"
    data, at = path.read_bytes(), 12  # a RIFF of parts: name, length, content, each at an even place
    while at + 8 <= len(data):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name in (b"VP8L", b"VP8 "):
            return name == b"VP8L"
        at += 8 + length + length % 2
    return False


def machine_changes(recipe: Recipe, now: Machine) -> str:
    """What of the computation is not as it was, in words."""
    before, after = recipe.machine.model_dump(), now.model_dump()
    return ", ".join(
        f"{name} {printable(str(before[name]))} (now {after[name]})" for name in before if before[name] != after[name]
    )


def _pixels(path: Path) -> np.ndarray:
    """A picture as RGB (H, W, 3), read before anything is sampled; ValueError, which names the file, if it is damaged."""
    import numpy as np

    try:
        with open_picture(path, READ) as picture:
            picture.verify()  # the checksums of a PNG's parts, which decoding passes over
        with open_picture(path, READ) as picture:
            return np.asarray(flat(picture), dtype=np.int16)
    except (OSError, SyntaxError, EOFError, PictureError) as error:
        raise ValueError(
            f"{path} is damaged: its recipe can be read and its pixels cannot ({error}), so there is nothing to compare with. "
            "Get the whole file; `fewstep info` shows the recipe."
        ) from None


def _native_by_choice(model: str | Path | None) -> bool:
    """Is this a diffusers pipeline whose denoiser runs in our network only where that is asked for?"""
    if model is None:
        return False
    from gen.models.pretrained import find_model

    _, folder = find_model(model)
    if not (folder / "model_index.json").is_file() or (folder / "config.json").exists():
        return False
    from gen.models.bridge.pipeline import native_by_choice

    return native_by_choice(folder)


def _device(recipe: Recipe) -> str:
    import torch

    kind = recipe.machine.device.split()[0] if recipe.machine.device else "cpu"
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return kind if present.get(kind) else "cpu"
