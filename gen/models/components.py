"""Networks as folders: `config.json` has a type and its sizes, `model.safetensors` the weights, parts of others files of
their own."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError, TensorFile, load_weights, read_json, write_json, write_weights
from gen.nn.initialisation import TooLarge, no_initialisation, no_larger_than, place_unfilled, wants_sizes_only, without_memory
from gen.nn.registry import build, config_of

# parts of a model folder that a library of others keeps in its own form: `gen.models.bridge.parts` opens and writes them
FOREIGN = ("diffusers_autoencoder", "t5", "clip")


def save_component(network: nn.Module, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a network as a folder. A network with more than weights adds its own files through `save_extra(folder)`;
    one of others writes all of them, through `save_folder(folder, dtype)`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_folder, save_extra = getattr(network, "save_folder", None), getattr(network, "save_extra", None)
    if save_folder is not None:
        save_folder(folder, dtype)
        return
    write_weights(folder / "model.safetensors", network.state_dict(), dtype)
    if save_extra is not None:
        save_extra(folder)
    write_json(folder / "config.json", config_of(network))


def given_or_shipped(given: Any, shipped: Path, name: str, lacking: str, advice: str) -> Path:
    """The folder that a caller gave, the shipped one if None. ValueError where there is none.

    name: of the argument, as a sentence begins; lacking: what is said where nothing is shipped; advice: what to give instead.
    """
    if given is None:
        if not (shipped / "config.json").is_file():
            raise ValueError(lacking)
        return shipped
    if not isinstance(given, str | Path) or not str(given) or not Path(given).is_dir():
        raise ValueError(f"{name} is {str(given)!r:.200}, which is no folder here; {advice}")
    return Path(given)


def component_digest(folder: Path) -> str:
    """sha256 of the weights of a network's folder."""
    kind = read_json(folder / "config.json").get("type")
    if kind in FOREIGN:
        from gen.models.bridge.parts import saved_digest

        return saved_digest(folder, str(kind))
    return file_digest(folder / "model.safetensors")


def load_component(folder: Path | str, *types: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Read a network from its folder (float32, evaluation mode); `types` limits which types may be there. dtype: of a text
    encoder of another library, which may be large.

    A network with more than weights reads its own files through `load_extra(folder)`.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if types and config.get("type") not in types:
        raise CheckpointError(folder / "config.json", f"has type {config.get('type')!r}; {' or '.join(types)} is needed here.")
    if config.get("type") in FOREIGN:
        from gen.models.bridge.parts import open_saved

        return open_saved(folder, config, dtype)
    shapes = TensorFile(folder / "model.safetensors").shapes
    empty = wants_sizes_only() and config.get("type") != "text_encoder"  # what reads words is small, and is asked for shapes
    try:
        with no_larger_than(shapes), no_initialisation(), without_memory() if empty else nullcontext():
            network = build(config)
    except TooLarge as error:
        raise CheckpointError(folder / "config.json", f"{error}, model.safetensors; they are not of one model.") from None
    except ValueError as error:
        raise CheckpointError(folder / "config.json", str(error)) from None
    if empty:
        return network.eval().requires_grad_(False)
    load_weights(place_unfilled(network), folder / "model.safetensors")
    load_extra = getattr(network, "load_extra", None)
    if load_extra is not None:
        load_extra(folder)
    return network.eval().requires_grad_(False)
