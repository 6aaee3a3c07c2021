"""Network -> published checkpoint. Reading what was written gives the same network, and writing what was read the same file."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.folders import written_folder
from gen.io.weights import listed, write_json, write_weights
from gen.models.formats.files import NAMES
from gen.models.formats.format import Format
from gen.models.formats.read import default_null, own_tensors, slots_of
from gen.models.formats.registry import find
from gen.models.formats.table import Slots
from gen.nn.registry import config_of


def write_checkpoint(network: nn.Module, path: Path | str, format: str, *, dtype: torch.dtype | None = None) -> Path:
    """Write a network in a published format (`gen.models.formats.FORMATS`): a .safetensors file, or for diffusers a folder.

    dtype: of the file; None: as the network's. ValueError where the format cannot say what the network is. A warning, where
    the format's own code would use the same weights a little differently, or where it has no place for a tensor. Each file is
    replaced in one piece.
    """
    kind, path = find(format), Path(path)
    if kind.config_out is None and path.suffix != ".safetensors":
        raise ValueError(f"{path}: the format {kind.name} is one file; give a name that ends in .safetensors.")
    if kind.config_out and (path.suffix == ".safetensors" or path.is_file()):
        raise ValueError(f"{path}: the format {kind.name} is a folder; give the name of one.")
    check(network, kind)
    tensors = named_tensors(network, kind)
    if kind.config_out is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, tensors, dtype)
        return path
    # a folder that is there may hold other files, and gets these; a new one is there when it is whole
    with nullcontext(path) if path.is_dir() else written_folder(path) as folder:
        write_weights(folder / NAMES[0], tensors, dtype)
        write_json(folder / "config.json", kind.config_out(config_of(network)))
    return path


def check(network: nn.Module, kind: Format) -> None:
    """ValueError, or a warning, about what the format cannot say of this network."""
    config = config_of(network)
    if config["type"] != kind.kind:
        raise ValueError(f"The format {kind.name} holds networks of type {kind.kind}; this one is of type {config['type']}.")
    network_config: Any = network.config
    usual = {name: field.default for name, field in type(network_config).model_fields.items()} | dict(kind.fixed)
    usual = {name: list(value) if isinstance(value, tuple) else value for name, value in usual.items()}  # as in JSON
    for name, value in config.items():
        if name == "type" or name in kind.stored or value == usual[name]:
            continue
        if name not in kind.published:
            raise ValueError(f"The format {kind.name} cannot hold a network with {name} {value!r}: it has {usual[name]!r}.")
        warnings.warn(
            f"This network has {name} {value!r}, and code that reads the format {kind.name} takes {usual[name]!r}: the weights "
            "are the same, their outputs differ a little.",
            stacklevel=3,
        )


def named_tensors(network: nn.Module, kind: Format) -> dict[str, Tensor]:
    """The network's tensors under the format's names."""
    network_tensors, slots, written_slots, tensors = (
        own_tensors(network),
        slots_of(kind, network),
        set[Slots](),
        dict[str, Tensor](),
    )
    for name, slot in slots.items():
        parts = [one.of(network_tensors).detach() for one in slot]
        part = parts[0] if len(parts) == 1 else torch.cat(parts)
        tensors[name] = part.clone() if slot in written_slots else part
        written_slots.add(slot)
    if lost := sorted(
        set(network_tensors) - {one.name for slot in slots.values() for one in slot} - {*kind.absent, "pos_embed"}
    ):
        raise ValueError(f"The format {kind.name} has no place for {listed(lost)}.")
    if lacking := [name for name in kind.signature if name not in tensors]:
        raise ValueError(f"The format {kind.name} needs {lacking[0]}, which this network has nothing for.")
    with torch.no_grad():
        for name, plain in default_null(network, kind).items():
            if not torch.equal(network_tensors[name], plain):
                warnings.warn(
                    f"The format {kind.name} has no place for {name}, what the network reads where there is no text: it is "
                    "lost.",
                    stacklevel=3,
                )
    return tensors
