"""Qwen-Image (arXiv 2508.02324) as diffusers keeps it, `QwenImageTransformer2DModel`: its authors' layout, and ComfyUI's too.

A file without its config is read by its shapes, with the published axes of positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats.diffusers_sd3 import BLOCK, HEAD, JOINT_ATTENTION
from gen.models.formats.format import Format, Settings, Shapes, check_attention, ratio, shape_of
from gen.models.formats.joint import STORED, axes_of, head_count, numbered, patch_sizes, read_config, told_axes, told_text
from gen.models.formats.table import Table

SIZE, PATCH, ROOM = 128, 2, 1024
SEEN = 3072  # further tokens of the text encoder for the pictures to edit, which it sees with the prompt
AXES = (16, 56, 56)

TABLE: Table = [
    ("img_in.*", "patch_embed.*"),
    ("txt_norm.weight", "text_embed.0.weight"),
    ("txt_in.*", "text_embed.1.*"),
    ("time_text_embed.timestep_embedder.linear_1.*", "time_embed.0.*"),
    ("time_text_embed.timestep_embedder.linear_2.*", "time_embed.2.*"),
    *JOINT_ATTENTION,
    (f"{BLOCK}.img_mod.1.*", "blocks.{i}.image.modulation.*"),
    (f"{BLOCK}.txt_mod.1.*", "blocks.{i}.text.modulation.*"),
    (f"{BLOCK}.img_mlp.net.0.proj.*", "blocks.{i}.image.mlp.fc1.*"),
    (f"{BLOCK}.img_mlp.net.2.*", "blocks.{i}.image.mlp.fc2.*"),
    (f"{BLOCK}.txt_mlp.net.0.proj.*", "blocks.{i}.text.mlp.fc1.*"),
    (f"{BLOCK}.txt_mlp.net.2.*", "blocks.{i}.text.mlp.fc2.*"),
    *HEAD,
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    dim, channels = patch_sizes(shapes, "img_in.weight", "proj_out.weight", PATCH)
    depth = numbered(shapes, "transformer_blocks")
    if not depth:
        raise ValueError("has no blocks")
    for part in "qkv":
        check_attention(shapes, f"transformer_blocks.0.attn.to_{part}.weight", dim, 1)
    heads = head_count(shapes, "transformer_blocks.0.attn.norm_q.weight", dim, settings)
    return {
        "type": "qwen_image",
        "size": settings.get("size") or SIZE,
        "patch": PATCH,
        "channels": channels,
        "dim": dim,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": ratio(shape_of(shapes, "transformer_blocks.0.img_mlp.net.0.proj.weight", 2)[0], dim),
        "axes": told_axes(settings, AXES, dim // heads),
        "text_dim": shape_of(shapes, "txt_in.weight", 2)[1],
        "padded_text": False,
        "pictures": settings.get("pictures") or 0,
        "still_pictures": bool(settings.get("still_pictures")),
        **told_text(settings, ROOM + (SEEN if settings.get("pictures") else 0), 1),
    }


def config_in(value: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {"heads": ("num_attention_heads", 24), "head_dim": ("attention_head_dim", 128)}
    needed = {"patch_size": (PATCH,), "guidance_embeds": (False,), "zero_cond_t": (False, True)}
    needed |= {"use_additional_t_cond": (False,), "use_layer3d_rope": (False,)}
    told = {"in_channels", "out_channels", "num_layers", "joint_attention_dim", "axes_dims_rope", "pooled_projection_dim"}
    settings = read_config(value, "QwenImageTransformer2DModel", numbers, needed, told)
    return {**settings, "axes": axes_of(value, "axes_dims_rope", AXES), "still_pictures": bool(value.get("zero_cond_t"))}


def config_out(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "patch_size": PATCH,
        "in_channels": config["channels"] * PATCH**2,
        "out_channels": config["channels"],
        "num_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "attention_head_dim": config["dim"] // config["heads"],
        "joint_attention_dim": config["text_dim"],
        "guidance_embeds": False,
        **({"zero_cond_t": True} if config["still_pictures"] else {}),
        "axes_dims_rope": list(config["axes"]),
    }


FORMAT = Format(
    name="diffusers-qwen-image",
    description="Qwen-Image as diffusers keeps it, a folder",
    kind="qwen_image",
    signature=("img_in.weight", "txt_norm.weight", "transformer_blocks.0.img_mod.1.weight"),
    blocks=("transformer_blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED - {"pooled_dim", "scalars"} | {"axes", "pictures", "still_pictures"},
    fixed={"padded_text": False, "patch": PATCH},
    published=frozenset(("padded_text",)),
    absent=("null_text",),
    config_in=config_in,
    config_out=config_out,
)
