"""Z-Image (arXiv 2511.22699) as its authors publish it in one file, and as ComfyUI keeps it: q, k and v are one tensor."""

from __future__ import annotations

from typing import Any

from gen.models.formats.format import Format, Settings, Shapes, check_attention, ratio, shape_of
from gen.models.formats.joint import STORED, head_count, numbered, patch_sizes, told_axes, told_text
from gen.models.formats.table import Row, Table

SIZE, PATCH, ROOM = 128, 2, 512
AXES = (32, 48, 48)
FIXED = {"padded_text": False, "patch": PATCH}
KEPT = STORED - {"pooled_dim", "scalars"} | {"axes", "refiner_depth", "mlp_ratio"}
STACKS = (("layers", "blocks"), ("noise_refiner", "image_blocks"), ("context_refiner", "text_blocks"))


def stacks(attention: list[tuple[str | tuple[str, ...], str]]) -> list[Row]:
    """The rows of every stack of blocks; attention: those of a block's attention."""
    rows: list[Row] = []
    for theirs, ours in ((f"{theirs}.{{i}}", f"{ours}.{{i}}") for theirs, ours in STACKS):
        for names, own in attention:
            parts = (names,) if isinstance(names, str) else names
            rows.append((tuple(f"{theirs}.attention.{name}" for name in parts), f"{ours}.attn.{own}"))
        rows += [
            (f"{theirs}.attention_norm1.weight", f"{ours}.norm1.weight"),
            (f"{theirs}.attention_norm2.weight", f"{ours}.norm2.weight"),
            (f"{theirs}.ffn_norm1.weight", f"{ours}.norm3.weight"),
            (f"{theirs}.ffn_norm2.weight", f"{ours}.norm4.weight"),
            ((f"{theirs}.feed_forward.w1.weight", f"{theirs}.feed_forward.w3.weight"), f"{ours}.fc1.weight"),
            (f"{theirs}.feed_forward.w2.weight", f"{ours}.fc2.weight"),
            (f"{theirs}.adaLN_modulation.0.*", f"{ours}.modulation.*"),
        ]
    return rows


def ends(embed: str, final: str) -> list[Row]:
    """The rows of all other layers, by their names of the first and the last."""
    rows: list[Row] = [
        (f"{embed}.*", "patch_embed.*"),
        ("x_pad_token", "pad_image"),
        ("cap_pad_token", "pad_text"),
        ("cap_embedder.0.weight", "text_embed.0.weight"),
        ("cap_embedder.1.*", "text_embed.1.*"),
        ("t_embedder.mlp.0.*", "time_embed.0.*"),
        ("t_embedder.mlp.2.*", "time_embed.2.*"),
        (f"{final}.adaLN_modulation.1.*", "head.modulation.*"),
        (f"{final}.linear.*", "head.linear.*"),
    ]
    return rows


TABLE: Table = [
    *ends("x_embedder", "final_layer"),
    *stacks(
        [
            ("qkv.weight", "qkv.weight"),
            ("out.weight", "proj.weight"),
            ("q_norm.weight", "q_norm.weight"),
            ("k_norm.weight", "k_norm.weight"),
        ]
    ),
]


def sizes(shapes: Shapes, settings: Settings, embed: str, final: str, norm: str) -> dict[str, Any]:
    """The config, by the names that a format has for what sizes are read from."""
    dim, channels = patch_sizes(shapes, f"{embed}.weight", f"{final}.linear.weight", PATCH)
    depth, refiners = numbered(shapes, "layers"), numbered(shapes, "noise_refiner")
    if not depth or refiners != numbered(shapes, "context_refiner"):
        raise ValueError(f"has {depth} blocks, and {refiners} of patches beside {numbered(shapes, 'context_refiner')} of text")
    heads = head_count(shapes, f"layers.0.attention.{norm}.weight", dim, settings)
    return {
        "type": "z_image",
        "size": settings.get("size") or SIZE,
        "patch": PATCH,
        "channels": channels,
        "dim": dim,
        "depth": depth,
        "refiner_depth": refiners,
        "heads": heads,
        "mlp_ratio": ratio(shape_of(shapes, "layers.0.feed_forward.w1.weight", 2)[0], dim),
        "axes": told_axes(settings, AXES, dim // heads),
        "text_dim": shape_of(shapes, "cap_embedder.1.weight", 2)[1],
        "padded_text": False,
        **told_text(settings, ROOM, 1),
    }


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    config = sizes(shapes, settings, "x_embedder", "final_layer", "q_norm")
    check_attention(shapes, "layers.0.attention.qkv.weight", config["dim"], 3)
    return config


FORMAT = Format(
    name="z-image",
    description="Z-Image as its authors publish it, the network alone",
    kind="z_image",
    signature=("x_embedder.weight", "x_pad_token", "layers.0.attention.qkv.weight"),
    blocks=("layers", "noise_refiner", "context_refiner"),
    table=TABLE,
    infer=infer,
    stored=KEPT,
    fixed=FIXED,
    published=frozenset(("padded_text",)),
    absent=("null_text",),
    ignored=("norm_final.weight",),
)
