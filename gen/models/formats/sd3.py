"""Stable Diffusion 3 and 3.5 as their authors publish them (arXiv 2403.03206), and as ComfyUI keeps them.

The table of positions is in the file. How large the pictures are that it was trained on is not: 128 latent pixels unless given.
"""

from __future__ import annotations

from typing import Any

from gen.models.formats.format import Format, Settings, Shapes, check_attention, ratio, shape_of, side
from gen.models.formats.joint import STORED, first_blocks, head_count, numbered, told_text
from gen.models.formats.table import Row, Table

SIZE = 128
ROOM, USUAL = 77 + 512, 77 + 256  # tokens of CLIP and of T5, at most and usually
BLOCK = "joint_blocks.{i}"


def _stream(theirs: str, ours: str) -> list[Row]:
    rows: list[Row] = [
        (f"{theirs}.attn.qkv.*", f"{ours}.attn.qkv.*"),
        (f"{theirs}.attn.ln_q.weight", f"{ours}.attn.q_norm.weight"),
        (f"{theirs}.attn.ln_k.weight", f"{ours}.attn.k_norm.weight"),
        (f"{theirs}.attn.proj.*", f"{ours}.attn.proj.*"),
        (f"{theirs}.mlp.fc1.*", f"{ours}.mlp.fc1.*"),
        (f"{theirs}.mlp.fc2.*", f"{ours}.mlp.fc2.*"),
        (f"{theirs}.adaLN_modulation.1.*", f"{ours}.modulation.*"),
    ]
    return rows


TABLE: Table = [
    ("pos_embed", "pos_embed"),
    ("x_embedder.proj.*", "patch_embed.*"),
    ("context_embedder.*", "text_embed.*"),
    ("t_embedder.mlp.0.*", "time_embed.0.*"),
    ("t_embedder.mlp.2.*", "time_embed.2.*"),
    ("y_embedder.mlp.0.*", "pooled_embed.0.*"),
    ("y_embedder.mlp.2.*", "pooled_embed.2.*"),
    *_stream(f"{BLOCK}.x_block", "blocks.{i}.image"),
    *_stream(f"{BLOCK}.context_block", "blocks.{i}.text"),
    (f"{BLOCK}.context_block.adaLN_modulation.1.*", "blocks.{i}.text.last_modulation.*"),
    (f"{BLOCK}.x_block.attn2.qkv.*", "blocks.{i}.image.attn2.qkv.*"),
    (f"{BLOCK}.x_block.attn2.ln_q.weight", "blocks.{i}.image.attn2.q_norm.weight"),
    (f"{BLOCK}.x_block.attn2.ln_k.weight", "blocks.{i}.image.attn2.k_norm.weight"),
    (f"{BLOCK}.x_block.attn2.proj.*", "blocks.{i}.image.attn2.proj.*"),
    ("final_layer.adaLN_modulation.1.*", "head.modulation.*"),
    ("final_layer.linear.*", "head.linear.*"),
]


def sizes(shapes: Shapes, settings: Settings, names: dict[str, str], depth: int) -> dict[str, Any]:
    """The config, by the names that a format has for what sizes are read from."""
    dim, channels, patch, across = shape_of(shapes, names["patches"], 4)
    out = shape_of(shapes, names["head"], 2)[0]
    if patch != across or out != patch**2 * channels:
        raise ValueError(
            f"makes {out} numbers of a patch of {channels} channels and {patch} by {across}; both must be one size"
        )
    if not depth:
        raise ValueError("has no blocks")
    inside, text_dim = shape_of(shapes, names["text"], 2)
    if inside != dim:
        raise ValueError(f"projects text to {inside} channels, where the width is {dim}")
    grid = side(shape_of(shapes, names["positions"], 3)[1], names["positions"])
    return {
        "type": "mmdit",
        "size": min(int(settings.get("size") or SIZE), grid * patch),
        "patch": patch,
        "channels": channels,
        "dim": dim,
        "depth": depth,
        "heads": head_count(shapes, names["norm"], dim, settings),
        "mlp_ratio": ratio(shape_of(shapes, names["hidden"], 2)[0], dim),
        "qk_norm": "rms" if names["norm"] in shapes else "none",
        "dual_blocks": first_blocks(shapes, names["dual"], depth),
        "position_grid": grid,
        "text_dim": text_dim,
        "pooled_dim": shape_of(shapes, names["pooled"], 2)[1],
        "padded_text": False,
        **told_text(settings, ROOM, USUAL),
    }


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    names = {
        "patches": "x_embedder.proj.weight",
        "head": "final_layer.linear.weight",
        "text": "context_embedder.weight",
        "positions": "pos_embed",
        "norm": "joint_blocks.0.x_block.attn.ln_q.weight",
        "hidden": "joint_blocks.0.x_block.mlp.fc1.weight",
        "dual": f"{BLOCK}.x_block.attn2.qkv.weight",
        "pooled": "y_embedder.mlp.0.weight",
    }
    config = sizes(shapes, settings, names, numbered(shapes, "joint_blocks"))
    check_attention(shapes, "joint_blocks.0.x_block.attn.qkv.weight", config["dim"], 3)
    return config


FORMAT = Format(
    name="sd3",
    description="Stable Diffusion 3 and 3.5 as their authors publish them, the network alone",
    kind="mmdit",
    signature=("x_embedder.proj.weight", "joint_blocks.0.x_block.attn.qkv.weight"),
    blocks=("joint_blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED | {"mlp_ratio", "qk_norm", "dual_blocks", "position_grid"},
    fixed={"padded_text": False},
    published=frozenset(("padded_text",)),
    absent=("null_text", "null_pooled"),
)
