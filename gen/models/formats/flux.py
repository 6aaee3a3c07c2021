"""FLUX.1 as its authors publish it, and as ComfyUI keeps it.

A single block has q, k, v and the first layer of its MLP as one tensor there. The axes of its positions are those of the
published networks, unless heads have another width.
"""

from __future__ import annotations

from typing import Any

from gen.models.formats import diffusers_flux
from gen.models.formats.diffusers_flux import FIXED
from gen.models.formats.format import Format, Settings, Shapes, check_attention
from gen.models.formats.joint import STORED, numbered
from gen.models.formats.table import Row, Table

DOUBLE, SINGLE = "double_blocks.{i}", "single_blocks.{i}"


def _stream(theirs: str, ours: str) -> list[Row]:
    rows: list[Row] = [
        (f"{DOUBLE}.{theirs}_mod.lin.*", f"{ours}.modulation.*"),
        (f"{DOUBLE}.{theirs}_attn.qkv.*", f"{ours}.attn.qkv.*"),
        (f"{DOUBLE}.{theirs}_attn.norm.query_norm.scale", f"{ours}.attn.q_norm.weight"),
        (f"{DOUBLE}.{theirs}_attn.norm.key_norm.scale", f"{ours}.attn.k_norm.weight"),
        (f"{DOUBLE}.{theirs}_attn.proj.*", f"{ours}.attn.proj.*"),
        (f"{DOUBLE}.{theirs}_mlp.0.*", f"{ours}.mlp.fc1.*"),
        (f"{DOUBLE}.{theirs}_mlp.2.*", f"{ours}.mlp.fc2.*"),
    ]
    return rows


def _embed(theirs: str, ours: str) -> list[Row]:
    rows: list[Row] = [(f"{theirs}.in_layer.*", f"{ours}.0.*"), (f"{theirs}.out_layer.*", f"{ours}.2.*")]
    return rows


TABLE: Table = [
    ("img_in.*", "patch_embed.*"),
    ("txt_in.*", "text_embed.*"),
    *_embed("time_in", "time_embed"),
    *_embed("vector_in", "pooled_embed"),
    *_embed("guidance_in", "scalar_embeds.guidance"),
    *_stream("img", "blocks.{i}.image"),
    *_stream("txt", "blocks.{i}.text"),
    (f"{SINGLE}.modulation.lin.*", "single_blocks.{i}.modulation.*"),
    (f"{SINGLE}.linear1.*", ("single_blocks.{i}.attn.qkv.*", "single_blocks.{i}.fc1.*")),
    (f"{SINGLE}.linear2.*", "single_blocks.{i}.proj.*"),
    (f"{SINGLE}.norm.query_norm.scale", "single_blocks.{i}.attn.q_norm.weight"),
    (f"{SINGLE}.norm.key_norm.scale", "single_blocks.{i}.attn.k_norm.weight"),
    ("final_layer.adaLN_modulation.1.*", "head.modulation.*"),
    ("final_layer.linear.*", "head.linear.*"),
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    names = {
        "patches": "img_in.weight",
        "head": "final_layer.linear.weight",
        "norm": "double_blocks.0.img_attn.norm.query_norm.scale",
        "guidance": "guidance_in.in_layer.weight",
        "hidden": "double_blocks.0.img_mlp.0.weight",
        "text": "txt_in.weight",
        "pooled": "vector_in.in_layer.weight",
    }
    config = diffusers_flux.sizes(
        shapes, settings, names, (numbered(shapes, "double_blocks"), numbered(shapes, "single_blocks"))
    )
    check_attention(shapes, "double_blocks.0.img_attn.qkv.weight", config["dim"], 3)
    return config


FORMAT = Format(
    name="flux",
    description="FLUX.1 as its authors publish it, the network alone",
    kind="flux",
    signature=("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight"),
    blocks=("double_blocks", "single_blocks"),
    table=TABLE,
    infer=infer,
    stored=STORED | {"mlp_ratio", "single_depth", "axes", "usual_guidance", "pictures", "beside"},
    fixed=FIXED,
    published=frozenset(("padded_text",)),
    absent=("null_text", "null_pooled"),
)
