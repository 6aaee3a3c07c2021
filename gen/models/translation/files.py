"""A translator as a folder: `config.json`, `model.safetensors`, `README.md`; and pictures as its directions read them.

The folder holds the changes alone. The model that they change is opened by its own name, and by nothing that a file says but
where that is a packaged model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from gen.io.digests import file_digest
from gen.io.errors import regular_file
from gen.io.weights import CheckpointError, TensorFile, load_weights, read_json, write_bytes, write_json, write_weights
from gen.models.control_pictures import as_lines
from gen.models.translation.config import FORMAT, DirectionConfig, Reads, TranslatorConfig
from gen.models.translation.network import TranslationBase, Translator
from gen.nn.initialisation import TooLarge, no_larger_than
from gen.nn.registry import describe
from samplers.lookup import nearest

_WEIGHTS = Path(__file__).parents[2] / "weights"
SHIPPED = {"default": _WEIGHTS / "translate"}  # for the model "fast"
WEIGHTS = "model.safetensors"


def as_read(pictures: Tensor, reads: Reads) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as a direction reads them: as they are, or as lines, grey and dark on light."""
    return pictures if reads == "picture" else 1 - 2 * as_lines((pictures.float() + 1) / 2)


def save_translator(translator: Translator, folder: Path, dtype: torch.dtype | None = None, source: str = "") -> None:
    """Write a translator's folder. dtype: of its weights. source: the paper, for its README."""
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / WEIGHTS, translator.state_dict(), dtype)
    write_json(folder / "config.json", translator.config.model_dump(mode="json"))
    config = translator.config
    names = ", ".join(direction.name for direction in config.directions)
    use = f"fewstep translate picture.png --model THIS_FOLDER --direction {config.directions[0].name}"
    text = (
        f"# A translator on {config.model}\n\nIt makes of a picture: {names} ({source or 'arXiv 2403.12036'}).\n\n    {use}\n"
    )
    write_bytes(folder / "README.md", text.encode())


def find_translator(given: Any) -> Path:
    """The folder of a translator: a name of SHIPPED where no folder is called so, or a folder here. ValueError for anything
    else."""
    names = " or ".join(map(repr, SHIPPED))
    if not isinstance(given, str | Path) or not str(given):
        raise ValueError(f"The translator is {given!r:.100}; give {names}, or the folder of one that you trained.")
    folder = Path(given)
    if str(given) in SHIPPED and not folder.is_dir():
        folder = SHIPPED[str(given)]
        if not (folder / "config.json").is_file():
            raise ValueError(f"This installation lacks the translator {str(given)!r}; give the folder of another.")
        return folder
    if not folder.is_dir():
        near = nearest(str(given), SHIPPED)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"{str(given)!r:.200} is no folder here; give {names}, or the folder of a translator.{hint}")
    return folder


def read_translator_config(folder: Path) -> TranslatorConfig:
    """`config.json` of a translator's folder, checked. CheckpointError says what is wrong with it."""
    where = folder / "config.json"
    if not where.is_file():
        raise CheckpointError(folder, "is no translator: it has no config.json.")
    value = read_json(where)
    if value.get("format") != FORMAT:
        kind = "a model, not a translator; give it as the base" if value.get("format") == "fewstep" else "no translator"
        raise CheckpointError(where, f'is the config of {kind} (it lacks "format": "{FORMAT}").')
    try:
        return TranslatorConfig.model_validate(value)
    except ValidationError as error:
        raise CheckpointError(where, f"is not valid: {describe(error, TranslatorConfig)}.") from None


def open_translator(folder: Path, base: TranslationBase, weights: dict[str, str] | None = None) -> Translator:
    """The translator of a folder, on a model that is open; frozen, in evaluation mode.

    weights: sha256 of the model's parts, which must be those that it was trained on; None: they are not known.
    CheckpointError for a folder that is damaged or for another model.
    """
    config = read_translator_config(folder)
    # the text encoder only says what the model is told: another one is no other model
    for part in ("denoiser", "autoencoder"):
        own, theirs = config.weights.get(part), (weights or {}).get(part)
        if own is not None and theirs is not None and own != theirs:
            raise CheckpointError(
                folder, f"was trained on another {part} than that of this model; open it with {config.model!r:.200}."
            )
    shapes = TensorFile(folder / WEIGHTS).shapes
    try:
        with no_larger_than(shapes):
            translator = Translator(config, base)
    except TooLarge as error:
        raise CheckpointError(folder / "config.json", f"{error}, {WEIGHTS}; they are not of one translator.") from None
    except ValueError as error:
        raise CheckpointError(folder / "config.json", f"does not go with this model: {error}") from None
    load_weights(translator, folder / WEIGHTS)
    return translator.eval().requires_grad_(False)


def translator_digest(folder: Path) -> str:
    """sha256 of a translator's weights; CheckpointError where there are none."""
    regular_file(folder / WEIGHTS)
    return file_digest(folder / WEIGHTS)


def find_direction(config: TranslatorConfig, name: object) -> DirectionConfig:
    """A direction by its name, the first for None; ValueError lists what there is."""
    if name is None:
        return config.directions[0]
    known = {direction.name: direction for direction in config.directions}
    if not isinstance(name, str) or name not in known:
        near = nearest(str(name), known)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"Unknown direction {name!r:.100}: {hint}This translator has {', '.join(known)}.")
    return known[name]
