"""An IP-Adapter's file: safetensors with `image_proj.*`, and `ip_adapter.N.to_k_ip.weight` and `to_v_ip` of every attention to
text; those for faces have a LoRA of every attention beside (`ip_adapter.N.to_q_lora.down.weight`, ...)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError, TensorFile, listed
from gen.models.bridge.hook_layouts import inside
from gen.models.bridge.ip_adapter.encoder import ImageEncoder
from gen.models.bridge.ip_adapter.projection import Projection, open_projection

ROWS = ("to_q", "to_k", "to_v", "to_out")
_WEIGHT = re.compile(r"^(\d+)\.to_([kv])_ip\.weight$")
_LORA = re.compile(r"^(\d+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
Lora = Mapping[str, tuple[Tensor, Tensor]]  # projection of an attention -> (down (r, in), up (out, r))


@dataclass(frozen=True)
class IPAdapter:
    """An opened IP-Adapter.

    keys, values: (inner, D) of every attention to text, in the network's order.
    lora: number of an attention among all of the network -> what it adds to its projections.
    digest: of its file.
    encoder: what sees its pictures; None for one that reads faces' embeddings alone.
    """

    projection: Projection
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    digest: str
    lora: Mapping[int, Lora] = field(default_factory=dict)
    encoder: ImageEncoder | None = None


def attentions(network: nn.Module) -> list[tuple[str, Any]]:
    """(name, module) of a U-Net's attentions in the order by which files count them: down, up, middle; to itself and to text by
    turns."""
    unet: Any = inside(network)
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [(name, unet.get_submodule(name)) for name in names]


def to_text(network: nn.Module) -> list[tuple[int, str, Any]]:
    """(number, name, module) of the attentions to text."""
    return [(i, name, module) for i, (name, module) in enumerate(attentions(network)) if name.endswith("attn2")]


def open_ip_adapter(path: Path, network: nn.Module, dtype: torch.dtype, device: torch.device) -> IPAdapter:
    """The file of an IP-Adapter for a U-Net, without its encoder. CheckpointError for one that is damaged, unsafe, or for
    another network."""
    file = TensorFile(path)
    if not any(name.startswith("image_proj.") for name in file.shapes):
        raise CheckpointError(path, "is no IP-Adapter: it has no tensors 'image_proj.*'.")
    tensors = {name: tensor.clone() for name, tensor in file.tensors()}
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise CheckpointError(path, f"has the unknown tensor {name!r:.100}, and an IP-Adapter image_proj and ip_adapter.")
        parts[part][key] = tensor
    projection = open_projection(path, parts["image_proj"], dtype)
    projection.module.to(device)
    keys, values = _weights(path, parts["ip_adapter"], network)
    lora = _lora(path, parts["ip_adapter"], network)
    ready = [tuple(one.to(device, dtype) for one in part) for part in (keys, values)]
    moved = {
        number: {row: (down.to(device, dtype), up.to(device, dtype)) for row, (down, up) in own.items()}
        for number, own in lora.items()
    }
    return IPAdapter(projection, ready[0], ready[1], file_digest(path), moved)


def _weights(path: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    unknown = [key for key in tensors if not _WEIGHT.match(key) and not _LORA.match(key)]
    if unknown:
        raise CheckpointError(path, f"has the unknown {listed(unknown)}; an IP-Adapter for Stable Diffusion or SDXL is read.")
    places = to_text(network)
    numbers = sorted({int(match[1]) for key in tensors if (match := _WEIGHT.match(key))})
    if numbers != [2 * i + 1 for i in range(len(places))]:
        raise CheckpointError(
            path, f"is for a network of {len(numbers)} attentions to text, and this one has {len(places)}; it is for another."
        )
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for number, (_, name, module) in zip(numbers, places, strict=True):
        for kind, kept in (("k", keys), ("v", values)):
            weight = tensors.get(f"{number}.to_{kind}_ip.weight")
            needed = (module.inner_kv_dim, module.cross_attention_dim)
            if weight is None or tuple(weight.shape) != needed:
                shape = "missing" if weight is None else str(tuple(weight.shape))
                raise CheckpointError(path, f"has to_{kind}_ip {shape} where {name} takes {needed}; it is for another network.")
            kept.append(weight)
    return keys, values


def _lora(path: Path, tensors: Mapping[str, Tensor], network: nn.Module) -> dict[int, dict[str, tuple[Tensor, Tensor]]]:
    lora: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
    everyone = attentions(network)
    for key in tensors:
        if not (match := _LORA.match(key)) or match[3] == "up":
            continue
        number, row = int(match[1]), match[2]
        up = tensors.get(key.replace(".down.", ".up."))
        if up is None or number >= len(everyone):
            raise CheckpointError(path, f"has {key!r} without its place or its other half; it is for another network.")
        module = projection_of(everyone[number][1], row)
        if (up.shape[0], tensors[key].shape[1]) != tuple(module.weight.shape) or up.shape[1] != tensors[key].shape[0]:
            raise CheckpointError(path, f"has {key!r} of a size that does not fit; it is for another network.")
        lora.setdefault(number, {})[row] = (tensors[key], up)
    return lora


def projection_of(attention: Any, row: str) -> Any:
    """A linear layer of an attention, by its name in files."""
    return attention.to_out[0] if row == "to_out" else getattr(attention, row)
