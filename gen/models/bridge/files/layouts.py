"""Original layouts as converters from their names to diffusers': diffusers' own where they take any size, ours where not.

Each takes tensors by name, without the prefix of the network in the file, and is only ever asked about rows (`rows.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    return convert_ldm_unet_checkpoint({f"model.diffusion_model.{name}": value for name, value in tensors.items()}, config)


def vae(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    return convert_ldm_vae_checkpoint(tensors, config)


def same(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """Names that are the library's already."""
    return tensors


def sd3(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    return convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))


def flux(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    return with_single_blocks(convert_flux_transformer_checkpoint_to_diffusers, tensors, config)


def with_single_blocks(convert: Callable[[Tensors], Tensors], tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """diffusers' converters cut the single blocks' first layer for a width of 3072 whatever the width is, so it is cut here."""
    width, stand_in = config["num_attention_heads"] * config["attention_head_dim"], torch.zeros(7 * 3072, 1)
    converted = convert({name: stand_in if ".linear1." in name else value for name, value in tensors.items()})
    for i in range(config["num_single_layers"]):
        for kind in ("weight", "bias"):
            whole = tensors[f"single_blocks.{i}.linear1.{kind}"]
            parts = whole.split([width, width, width, len(whole) - 3 * width])
            for name, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True):
                converted[f"single_transformer_blocks.{i}.{name}.{kind}"] = part
    return converted


def z_image(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers

    return convert_z_image_transformer_checkpoint_to_diffusers(dict(tensors))


OPEN_CLIP = (
    (r"positional_embedding", "embeddings.position_embedding.weight"),
    (r"token_embedding\.", "embeddings.token_embedding."),
    (r"ln_final\.", "final_layer_norm."),
    (r"transformer\.resblocks\.(\d+)\.", r"encoder.layers.\1."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def open_clip(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """OpenCLIP's text encoder in transformers' names: q, k and v are one matrix there, and the projection is transposed."""
    made: Tensors = {}
    for name, value in tensors.items():
        layer = re.match(r"transformer\.resblocks\.(\d+)\.", name)
        if name == "logit_scale" or (layer and int(layer[1]) >= config["num_hidden_layers"]):
            continue
        if name == "text_projection":
            made["text_projection.weight"] = value.T
            continue
        new = f"text_model.{name}"
        for old, ours in OPEN_CLIP:
            new = re.sub(rf"(?<=text_model\.){old}" if not old.startswith(r"\.") else old, ours, new)
        joint = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", new)
        if joint is None:
            made[new] = value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            made[f"{joint[1]}{part}_proj.{joint[2]}"] = rows
    return made
