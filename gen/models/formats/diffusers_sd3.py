"""Stable Diffusion 3 and 3.5 as diffusers keeps them: `SD3Transformer2DModel`.

q, k and v are apart there, and the last modulations are (scale, shift). The features of "no text" are the empty prompt's, which
`null_text` and `null_pooled` give to `gen.models.formats.read_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats import sd3
from gen.models.formats.format import Format, Settings, Shapes, check_attention, given
from gen.models.formats.joint import STORED, numbered, read_config
from gen.models.formats.table import Row, Table, swapped

BLOCK, ATTENTION = "transformer_blocks.{i}", "transformer_blocks.{i}.attn"
EMBED = "time_text_embed"


def qkv(theirs: str, ours: str, names: tuple[str, ...] = ("to_q", "to_k", "to_v")) -> Row:
    return tuple(f"{theirs}.{name}.*" for name in names), f"{ours}.qkv.*"


ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
# a joint block of diffusers, but for its modulations and MLPs, in every family
JOINT_ATTENTION: list[Row] = [
    qkv(ATTENTION, "blocks.{i}.image.attn"),
    qkv(ATTENTION, "blocks.{i}.text.attn", ADDED),
    (f"{ATTENTION}.norm_q.weight", "blocks.{i}.image.attn.q_norm.weight"),
    (f"{ATTENTION}.norm_k.weight", "blocks.{i}.image.attn.k_norm.weight"),
    (f"{ATTENTION}.norm_added_q.weight", "blocks.{i}.text.attn.q_norm.weight"),
    (f"{ATTENTION}.norm_added_k.weight", "blocks.{i}.text.attn.k_norm.weight"),
    (f"{ATTENTION}.to_out.0.*", "blocks.{i}.image.attn.proj.*"),
    (f"{ATTENTION}.to_add_out.*", "blocks.{i}.text.attn.proj.*"),
]
# what Stable Diffusion 3 and FLUX name alike
JOINT_BLOCK: list[Row] = [
    *JOINT_ATTENTION,
    (f"{BLOCK}.norm1.linear.*", "blocks.{i}.image.modulation.*"),
    (f"{BLOCK}.norm1_context.linear.*", "blocks.{i}.text.modulation.*"),
    (f"{BLOCK}.ff.net.0.proj.*", "blocks.{i}.image.mlp.fc1.*"),
    (f"{BLOCK}.ff.net.2.*", "blocks.{i}.image.mlp.fc2.*"),
    (f"{BLOCK}.ff_context.net.0.proj.*", "blocks.{i}.text.mlp.fc1.*"),
    (f"{BLOCK}.ff_context.net.2.*", "blocks.{i}.text.mlp.fc2.*"),
]
EMBEDS: list[Row] = [
    ("context_embedder.*", "text_embed.*"),
    (f"{EMBED}.timestep_embedder.linear_1.*", "time_embed.0.*"),
    (f"{EMBED}.timestep_embedder.linear_2.*", "time_embed.2.*"),
    (f"{EMBED}.text_embedder.linear_1.*", "pooled_embed.0.*"),
    (f"{EMBED}.text_embedder.linear_2.*", "pooled_embed.2.*"),
]
HEAD: list[Row] = [("norm_out.linear.*", swapped("head.modulation.*")), ("proj_out.*", "head.linear.*")]

TABLE: Table = [
    ("pos_embed.pos_embed", "pos_embed"),
    ("pos_embed.proj.*", "patch_embed.*"),
    *EMBEDS,
    *JOINT_BLOCK,
    (f"{BLOCK}.norm1_context.linear.*", swapped("blocks.{i}.text.last_modulation.*")),
    qkv(f"{BLOCK}.attn2", "blocks.{i}.image.attn2"),
    (f"{BLOCK}.attn2.norm_q.weight", "blocks.{i}.image.attn2.q_norm.weight"),
    (f"{BLOCK}.attn2.norm_k.weight", "blocks.{i}.image.attn2.k_norm.weight"),
    (f"{BLOCK}.attn2.to_out.0.*", "blocks.{i}.image.attn2.proj.*"),
    *HEAD,
]
TOLD = {"patch_size", "in_channels", "out_channels", "num_layers", "joint_attention_dim", "caption_projection_dim"}
TOLD |= {"pooled_projection_dim", "pos_embed_max_size", "dual_attention_layers"}


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    given(settings, "size", "the latent size stands in config.json beside it")
    names = {
        "patches": "pos_embed.proj.weight",
        "head": "proj_out.weight",
        "text": "context_embedder.weight",
        "positions": "pos_embed.pos_embed",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
        "hidden": "transformer_blocks.0.ff.net.0.proj.weight",
        "dual": f"{BLOCK}.attn2.to_q.weight",
        "pooled": f"{EMBED}.text_embedder.linear_1.weight",
    }
    config = sd3.sizes(shapes, settings, names, numbered(shapes, "transformer_blocks"))
    for part in "qkv":
        check_attention(shapes, f"transformer_blocks.0.attn.to_{part}.weight", config["dim"], 1)
    return config


def config_in(value: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {"size": ("sample_size", 128), "heads": ("num_attention_heads", 18), "head_dim": ("attention_head_dim", 64)}
    return read_config(value, "SD3Transformer2DModel", numbers, {"qk_norm": (None, "rms_norm")}, TOLD)


def config_out(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": config["size"],
        "patch_size": config["patch"],
        "in_channels": config["channels"],
        "out_channels": config["channels"],
        "num_layers": config["depth"],
        "num_attention_heads": config["heads"],
        "attention_head_dim": config["dim"] // config["heads"],
        "joint_attention_dim": config["text_dim"],
        "caption_projection_dim": config["dim"],
        "pooled_projection_dim": config["pooled_dim"],
        "pos_embed_max_size": config["position_grid"] or config["size"] // config["patch"],
        "dual_attention_layers": list(range(config["dual_blocks"])),
        "qk_norm": "rms_norm" if config["qk_norm"] == "rms" else None,
    }


FORMAT = Format(
    name="diffusers-sd3",
    description="Stable Diffusion 3 and 3.5 as diffusers keeps them, a folder",
    kind="mmdit",
    signature=("pos_embed.proj.weight", "context_embedder.weight", "transformer_blocks.0.attn.add_q_proj.weight"),
    blocks=("transformer_blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED | {"qk_norm", "dual_blocks", "position_grid"},
    fixed={"padded_text": False},
    published=frozenset(("padded_text",)),
    absent=("null_text", "null_pooled"),
    config_in=config_in,
    config_out=config_out,
)
