"""Networks as folders: `config.json` names a type from the registry below and its sizes, `model.safetensors` the weights.

The registry is closed: a file can only name what is listed here, and its config is validated by that type's own pydantic
model, so no file chooses what code runs.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from gen.io.digests import file_digest
from gen.io.key_hints import dotted_keys, unknown_key
from gen.io.weights import CheckpointError, TensorFile, load_weights, read_json, write_json, write_weights
from gen.nn.initialisation import TooLarge, no_initialisation, no_larger_than


class Config(BaseModel):
    """Base of every config: unknown keys, NaN and infinities are refused; values do not change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# type name -> (module, config class, class it is the config of); imported when used
Registry = Mapping[str, tuple[str, str, str]]

COMPONENTS: dict[str, tuple[str, str, str]] = {
    "uvit": ("gen.nn.backbones.uvit", "UViTConfig", "UViT"),
    "dit": ("gen.nn.backbones.dit", "DiTConfig", "DiT"),
    "dimr": ("gen.nn.backbones.dimr", "DiMRConfig", "DiMR"),
    "autoencoder": ("gen.nn.autoencoder", "AutoencoderConfig", "Autoencoder"),
    "text_encoder": ("gen.nn.text_encoder", "TextEncoderConfig", "TextEncoder"),
    "influence": ("gen.nn.influence_networks", "InfluenceConfig", "Influences"),
}

# parts of a model folder that a library of others keeps in its own form: `gen.models.bridge.parts` opens and writes them
FOREIGN = ("diffusers_autoencoder", "t5", "clip")

Network = TypeVar("Network", bound=nn.Module)


def describe(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """A validation error as one line. model: of the config, for what an unknown key may mean."""
    known = dotted_keys(model) if model is not None else []

    def one(problem: Any) -> str:
        where = ".".join(map(str, problem["loc"])) or "value"
        if known and problem["type"] == "extra_forbidden":
            return unknown_key(where, known)
        return f"{where}: {problem['msg'].lower()}"

    return "; ".join(one(problem) for problem in error.errors())


def from_registry(registry: Registry, what: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """(class, checked config) of the row that config["type"] names, imported now.

    `what` is the kind of thing, for the sentence of the ValueError where the type or its config is not valid.
    """
    settings = dict(config)
    kind = settings.pop("type", None)
    if kind not in registry:
        near = difflib.get_close_matches(str(kind), registry, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"Unknown {what} {kind!r}: {hint}Known: {', '.join(registry)}.")
    name, config_class, built_class = registry[kind]
    module = importlib.import_module(name)
    try:
        return getattr(module, built_class), getattr(module, config_class)(**settings)
    except ValidationError as error:
        reason = describe(error, getattr(module, config_class))
        raise ValueError(f"The config of {what} {kind!r} is not valid: {reason.removesuffix('?')}.") from None


def build(config: Mapping[str, Any]) -> nn.Module:
    """A network with fresh weights from its config, e.g. {"type": "uvit", "dim": 256, ...}."""
    network, checked = from_registry(COMPONENTS, "network type", config)
    return network(checked)


def config_of(network: nn.Module) -> dict[str, Any]:
    """The config that `build` makes this network from."""
    kind = next(kind for kind, (_, _, name) in COMPONENTS.items() if name == type(network).__name__)
    return {"type": kind, **network.config.model_dump(mode="json")}


def save_component(network: nn.Module, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a network as a folder. A network with more than weights adds its own files through `save_extra(folder)`;
    one of others writes all of them, through `save_folder(folder, dtype)`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(network, "save_folder"):
        network.save_folder(folder, dtype)
        return
    write_weights(folder / "model.safetensors", network.state_dict(), dtype)
    if hasattr(network, "save_extra"):
        network.save_extra(folder)
    write_json(folder / "config.json", config_of(network))


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
    try:
        with no_larger_than(shapes), no_initialisation():
            network = build(config)
    except TooLarge as error:
        raise CheckpointError(folder / "config.json", f"{error}, model.safetensors; they are not of one model.") from None
    except ValueError as error:
        raise CheckpointError(folder / "config.json", str(error)) from None
    load_weights(network, folder / "model.safetensors")
    if hasattr(network, "load_extra"):
        network.load_extra(folder)
    return network.eval().requires_grad_(False)
