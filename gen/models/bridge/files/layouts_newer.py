"""Original layouts of Chroma, FLUX.2, Krea 2, AuraFlow and Lumina 2 as converters to diffusers' names, as `layouts.py` has
those of others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gen.models.bridge.files.layouts import Tensors, with_single_blocks


def chroma(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_chroma_transformer_checkpoint_to_diffusers

    return with_single_blocks(convert_chroma_transformer_checkpoint_to_diffusers, tensors, config)


def flux2(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers

    return convert_flux2_transformer_checkpoint_to_diffusers(dict(tensors))


def krea2(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_krea2_transformer_checkpoint_to_diffusers

    return convert_krea2_transformer_checkpoint_to_diffusers(dict(tensors))


def auraflow(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """diffusers' converter has None for what a file lacks."""
    from diffusers.loaders.single_file_utils import convert_auraflow_transformer_checkpoint_to_diffusers

    made = convert_auraflow_transformer_checkpoint_to_diffusers(left := dict(tensors))
    return left | {name: value for name, value in made.items() if value is not None}


LUMINA_2 = (
    (r"^cap_embedder\.", "time_caption_embed.caption_embedder."),
    (r"^t_embedder\.mlp\.0\.", "time_caption_embed.timestep_embedder.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_caption_embed.timestep_embedder.linear_2."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear_1."),
    (r"^final_layer\.linear\.", "norm_out.linear_2."),
    (r"^(context_refiner\.\d+)\.attention_norm1\.", r"\1.norm1."),  # not told the time, and so a norm alone
    (r"\.attention_norm1\.", ".norm1.norm."),
    (r"\.attention_norm2\.", ".norm2."),
    (r"\.adaLN_modulation\.1\.", ".norm1.linear."),
    (r"\.attention\.out\.", ".attn.to_out.0."),
    (r"\.attention\.([qk])_norm\.", r".attn.norm_\1."),
    (r"\.feed_forward\.w([123])\.", r".feed_forward.linear_\1."),
)


def lumina2(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """diffusers' converter cuts q, k and v for one width, so the names are here. The norm of the last layer is never used."""
    dim = config["hidden_size"] // config["num_attention_heads"]
    rows = [config["hidden_size"], *[dim * config["num_kv_heads"]] * 2]
    made: Tensors = {}
    for name, value in tensors.items():
        if name == "norm_final.weight":
            continue
        if name.endswith(".attention.qkv.weight"):
            place = name.removesuffix("attention.qkv.weight")
            made |= {f"{place}attn.to_{part}.weight": one for part, one in zip("qkv", value.split(rows), strict=True)}
            continue
        for old, new in LUMINA_2:
            name = re.sub(old, new, name)
        made[name] = value
    return made
