"""An IP-Adapter's file: safetensors with `image_proj.*`, and `ip_adapter.N.to_k_ip.weight` and `to_v_ip` of every attention to
text; those for faces have a LoRA of every attention beside (`ip_adapter.N.to_q_lora.down.weight`, ...).

Those for FLUX have keys and values, with biases, of every joint block; XLabs' own files have other names for them. InstantX's
have keys and values without biases of every block, the joint ones first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError, TensorFile, listed
from gen.models.bridge.hook_layouts import inside
from gen.models.bridge.ip_adapter.encoder import ImageEncoder
from gen.models.bridge.ip_adapter.projection import Projection, open_projection

ROWS = ("to_q", "to_k", "to_v", "to_out")
_WEIGHT = re.compile(r"^(\d+)\.to_([kv])_ip\.(weight|bias)$")
# XLabs' names -> the usual ones
_XLABS = (
    (re.compile(r"^ip_adapter_proj_model\."), "image_proj."),
    (re.compile(r"^double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\."), r"ip_adapter.\1.to_\2_ip."),
)
JOINT = "FluxTransformer2DModel"  # a network of joint blocks, which adapters for it add to
_LORA = re.compile(r"^(\d+)\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
Lora = Mapping[str, tuple[Tensor, Tensor]]  # projection of an attention -> (down (r, in), up (out, r))


@dataclass(frozen=True)
class IPAdapter:
    """An opened IP-Adapter.

    keys, values: (inner, D) of every attention to text, in the network's order.
    key_biases, value_biases: of these (inner,), () for none.
    lora: number of an attention among all of the network -> what it adds to its projections.
    digest: of its file.
    encoder: what sees its pictures; None for one that reads faces' embeddings alone.
    black: what stands in for a picture is what the encoder sees in a black one; otherwise zeros in the place of its embedding.
    heads: of FLUX's attention, where it acts in all blocks (InstantX) and each head of its keys is divided by its root mean
        square; 0 for other adapters.
    """

    projection: Projection
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    digest: str
    lora: Mapping[int, Lora] = field(default_factory=dict)
    encoder: ImageEncoder | None = None
    key_biases: tuple[Tensor, ...] = ()
    value_biases: tuple[Tensor, ...] = ()
    black: bool = False
    heads: int = 0

    @property
    def in_all_blocks(self) -> bool:
        return self.heads > 0

    def projected(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of tokens (..., D) in a layer."""
        pairs = ((self.keys, self.key_biases), (self.values, self.value_biases))
        biases = [found[layer].to(tokens) if found else None for _, found in pairs]
        k, v = (F.linear(tokens, own[layer].to(tokens), bias) for (own, _), bias in zip(pairs, biases, strict=True))
        if self.heads:
            apart = k.unflatten(-1, (self.heads, -1))
            k = F.rms_norm(apart.float(), apart.shape[-1:], eps=1e-5).to(k).flatten(-2)
        return k, v


def is_joint(network: nn.Module) -> bool:
    return type(inside(network)).__name__ == JOINT


def attentions(network: nn.Module) -> list[tuple[str, Any]]:
    """(name, module) of a U-Net's attentions in the order by which files count them: down, up, middle; to itself and to text by
    turns."""
    unet: Any = inside(network)
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    return [(name, unet.get_submodule(name)) for name in names]


def to_text(network: nn.Module) -> list[tuple[int, str, Any]]:
    """(number, name, module) of the attentions to text; of a network of joint blocks, those blocks."""
    if is_joint(network):
        blocks: Any = inside(network)
        return [(i, f"transformer_blocks.{i}.", block) for i, block in enumerate(blocks.transformer_blocks)]
    return [(i, name, module) for i, (name, module) in enumerate(attentions(network)) if name.endswith("attn2")]


def in_every_block(network: nn.Module) -> list[tuple[int, str, Any]]:
    """As `to_text`, of FLUX's joint blocks and then of those of one stream."""
    blocks: Any = inside(network)
    joint = to_text(network)
    singles = [
        (len(joint) + i, f"single_transformer_blocks.{i}.", one) for i, one in enumerate(blocks.single_transformer_blocks)
    ]
    return joint + singles


def places(adapter: IPAdapter, network: nn.Module) -> list[tuple[int, str, Any]]:
    """Where an adapter acts, one place for each of its keys."""
    return in_every_block(network) if adapter.in_all_blocks else to_text(network)


def open_ip_adapter(path: Path, network: nn.Module, dtype: torch.dtype, device: torch.device) -> IPAdapter:
    """The file of an IP-Adapter for a U-Net or FLUX, without its encoder. CheckpointError for one that is damaged, unsafe, or
    for another network."""
    file = TensorFile(path)
    if not any(_usual(name).startswith("image_proj.") for name in file.shapes):
        raise CheckpointError(path, "is no IP-Adapter: it has no tensors 'image_proj.*'.")
    tensors = {_usual(name): tensor.clone() for name, tensor in file.tensors()}
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise CheckpointError(path, f"has the unknown tensor {name!r:.100}, and an IP-Adapter image_proj and ip_adapter.")
        parts[part][key] = tensor
    projection = open_projection(path, parts["image_proj"], dtype)
    projection.module.to(device)
    joint = is_joint(network)
    everywhere = joint and projection.reads == "face"  # InstantX's projection is made as that of a face
    if everywhere:
        projection = replace(projection, reads="pooled")
    found = _weights(path, parts["ip_adapter"], network, joint, everywhere)
    lora = {} if joint else _lora(path, parts["ip_adapter"], network)
    if joint and any(_LORA.match(key) for key in parts["ip_adapter"]):
        raise CheckpointError(path, "has LoRAs of a U-Net's attentions; it is for another network.")
    ready = [tuple(one.to(device, dtype) for one in part) for part in found]
    moved = {
        number: {row: (down.to(device, dtype), up.to(device, dtype)) for row, (down, up) in own.items()}
        for number, own in lora.items()
    }
    keys, values, key_biases, value_biases = ready
    heads = to_text(network)[0][2].attn.heads if everywhere else 0
    black = joint and not everywhere
    return IPAdapter(projection, keys, values, file_digest(path), moved, None, key_biases, value_biases, black, heads)


def _usual(name: str) -> str:
    """A tensor's usual name, of XLabs' or that."""
    for pattern, usual in _XLABS:
        name = pattern.sub(usual, name)
    return name


def _weights(
    path: Path, tensors: Mapping[str, Tensor], network: nn.Module, joint: bool, everywhere: bool
) -> list[list[Tensor]]:
    """Keys, values, and the biases of both, where the network's have them. everywhere: as `IPAdapter.in_all_blocks`."""
    biased = joint and not everywhere
    unknown = [
        key
        for key in tensors
        if not ((match := _WEIGHT.match(key)) and (biased or match[3] == "weight")) and not _LORA.match(key)
    ]
    if unknown:
        raise CheckpointError(
            path,
            f"has the unknown {listed(unknown)}; an IP-Adapter for Stable Diffusion, SDXL or FLUX is read, each for its own.",
        )
    found_in = in_every_block(network) if everywhere else to_text(network)
    numbers = sorted({int(match[1]) for key in tensors if (match := _WEIGHT.match(key))})
    if numbers != [i if joint else 2 * i + 1 for i in range(len(found_in))]:
        raise CheckpointError(
            path, f"is for a network of {len(numbers)} attentions to text, and this one has {len(found_in)}; it is for another."
        )
    found: list[list[Tensor]] = [[], [], [], []]
    rows = [("k", "weight", found[0]), ("v", "weight", found[1])]
    rows += [("k", "bias", found[2]), ("v", "bias", found[3])] if biased else []
    for number, (_, name, module) in zip(numbers, found_in, strict=True):
        sizes = (module.attn.inner_dim, _text_width(network)) if joint else (module.inner_kv_dim, module.cross_attention_dim)
        for kind, leaf, kept in rows:
            value, needed = tensors.get(f"{number}.to_{kind}_ip.{leaf}"), sizes if leaf == "weight" else sizes[:1]
            if value is None or tuple(value.shape) != needed:
                shape = "missing" if value is None else str(tuple(value.shape))
                raise CheckpointError(path, f"has to_{kind}_ip {shape} where {name} takes {needed}; it is for another network.")
            kept.append(value)
    return found


def _text_width(network: nn.Module) -> int:
    config: Any = inside(network).config
    return int(config.joint_attention_dim)


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
