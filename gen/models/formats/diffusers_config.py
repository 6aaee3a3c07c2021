"""`config.json` of a diffusers transformer folder: read strictly, and written so that diffusers opens the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats.table import nearest

BLOCK = "transformer_blocks.{i}"
# the rows of a block's self-attention and MLP, alike in all of its transformers
BLOCK_ROWS = [
    ((f"{BLOCK}.attn1.to_q.*", f"{BLOCK}.attn1.to_k.*", f"{BLOCK}.attn1.to_v.*"), "blocks.{i}.attn.qkv.*"),
    (f"{BLOCK}.attn1.to_out.0.*", "blocks.{i}.attn.proj.*"),
    (f"{BLOCK}.ff.net.0.proj.*", "blocks.{i}.mlp.fc1.*"),
    (f"{BLOCK}.ff.net.2.*", "blocks.{i}.mlp.fc2.*"),
]
ACTIVATIONS = {"gelu-approximate": "tanh", "gelu": "exact"}
CLASSES = {
    "DiTTransformer2DModel": ("ada_norm_zero",),
    "PixArtTransformer2DModel": ("ada_norm_single",),
    "Transformer2DModel": ("ada_norm_zero", "ada_norm_single"),  # both, in older files
}
# keys that say how to run the network, not what it is, or that its tensors repeat
IGNORED = {"_class_name", "_diffusers_version", "_name_or_path", "dropout", "norm_num_groups", "upcast_attention"}
IGNORED |= {"use_linear_projection", "cross_attention_dim", "num_embeds_ada_norm", "in_channels", "out_channels"}
IGNORED |= {"num_layers", "patch_size", "attention_bias", "caption_channels", "use_additional_conditions", "num_vector_embeds"}
# keys that must have one of these values
NEEDED: dict[str, tuple[Any, ...]] = {
    "norm_elementwise_affine": (False,),
    "attention_type": ("default",),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
}
READ = {
    "num_attention_heads",
    "attention_head_dim",
    "sample_size",
    "activation_fn",
    "norm_type",
    "norm_eps",
    "interpolation_scale",
}


def read_config(value: Mapping[str, Any], norm_type: str, norm_eps: float) -> dict[str, Any]:
    """heads, head_dim, size, gelu, norm_eps and, where given, position_scale; sizes that tensors tell are taken from them.

    norm_eps: what diffusers takes where the file is silent. ValueError for a class, key or value that does not belong.
    """
    kind = value.get("_class_name")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ValueError(f"has _class_name {kind!r}; {', '.join(CLASSES)} can be read")
    for key in sorted(value.keys() - IGNORED - NEEDED.keys() - READ):
        raise ValueError(f"has the key {key!r}, which is not known{nearest(key, [*IGNORED, *NEEDED, *READ])}")
    for key, allowed in NEEDED.items():
        if key in value and value[key] not in allowed:
            raise ValueError(f"has {key} {value[key]!r}; only {allowed[0]!r} can be read")
    named = value.get("norm_type", CLASSES[kind][0])
    if named != norm_type or named not in CLASSES[kind]:
        raise ValueError(f"has norm_type {named!r}, and the tensors are those of {norm_type!r}")
    activation = value.get("activation_fn", "gelu-approximate")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"has activation_fn {activation!r}; {' or '.join(ACTIVATIONS)} can be read")
    settings: dict[str, Any] = {"gelu": ACTIVATIONS[activation]}
    sizes = (("heads", "num_attention_heads", 16), ("head_dim", "attention_head_dim", 72), ("size", "sample_size", None))
    for ours, theirs, default in sizes:
        number = value.get(theirs, default)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"has {theirs} {number!r}, where a whole number from 1 is needed")
        settings[ours] = number
    for ours, theirs, usual in (("norm_eps", "norm_eps", norm_eps), ("position_scale", "interpolation_scale", None)):
        real = value.get(theirs, usual)
        if real is not None and (not isinstance(real, int | float) or isinstance(real, bool) or real <= 0):
            raise ValueError(f"has {theirs} {real!r}, where a number above 0 is needed")
        settings[ours] = real
    return settings


def write_config(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The part that DiT and PixArt share."""
    return {
        "_class_name": kind,
        "num_attention_heads": config["heads"],
        "attention_head_dim": config["dim"] // config["heads"],
        "in_channels": config["channels"],
        "out_channels": config["channels"] * (2 if config["learned_variance"] else 1),
        "num_layers": config["depth"],
        "attention_bias": config["qkv_bias"],
        "sample_size": config["size"],
        "patch_size": config["patch"],
        "activation_fn": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config["gelu"]),
        "norm_type": "ada_norm_single" if config["modulation"] == "adaln_single" else "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": config["mlp_norm_eps"],
    }
