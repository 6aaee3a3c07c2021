"""DiT as its authors publish it (arXiv 2212.09748).

`pos_embed` is stored though it is fixed: it is checked against our sine-cosine positions, and written as it was read.
"""

from __future__ import annotations

from typing import Any

from gen.models.formats.format import Format, Settings, Shapes, check_attention, count_blocks, heads_for, ratio, shape_of, side

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}

TABLE = [
    ("pos_embed", "pos_embed"),
    ("x_embedder.proj.*", "patch_embed.*"),
    ("t_embedder.mlp.0.*", "time_embed.0.*"),
    ("t_embedder.mlp.2.*", "time_embed.2.*"),
    ("y_embedder.embedding_table.weight", "label_embed.weight"),
    ("blocks.{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*"),
    ("blocks.{i}.attn.proj.*", "blocks.{i}.attn.proj.*"),
    ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*"),
    ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*"),
    ("blocks.{i}.adaLN_modulation.1.*", "blocks.{i}.modulation.*"),
    ("final_layer.adaLN_modulation.1.*", "final_modulation.*"),
    ("final_layer.linear.*", "head.*"),
]


def image_sizes(shapes: Shapes, patch_embed: str, head: str) -> dict[str, Any]:
    """patch, channels, dim and learned_variance of a network that predicts as many channels as it reads, or twice that."""
    dim, channels, patch, _ = shape_of(shapes, patch_embed, 4)
    out = shape_of(shapes, head, 2)[0]
    if out not in (channels * patch**2, 2 * channels * patch**2):
        raise ValueError(
            f"has {head!r} with {out} rows, which make neither {channels} channels of {patch} by {patch} nor twice"
        )
    return {"patch": patch, "channels": channels, "dim": dim, "learned_variance": out == 2 * channels * patch**2}


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    sizes = image_sizes(shapes, "x_embedder.proj.weight", "final_layer.linear.weight")
    dim, depth = sizes["dim"], count_blocks(shapes, "blocks")
    check_attention(shapes, "blocks.0.attn.qkv.weight", dim, 3)
    return {
        "type": "dit",
        **sizes,
        "size": sizes["patch"] * side(shape_of(shapes, "pos_embed", 3)[1], "pos_embed"),
        "depth": depth,
        "heads": heads_for(dim, HEADS, settings),
        "mlp_ratio": ratio(shape_of(shapes, "blocks.0.mlp.fc1.weight", 2)[0], dim),
        "num_classes": shape_of(shapes, "y_embedder.embedding_table.weight", 2)[0] - 1,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
    }


STORED = frozenset(("size", "patch", "channels", "dim", "depth", "heads", "mlp_ratio", "learned_variance"))

FORMAT = Format(
    name="dit",
    description="DiT as its authors publish it",
    kind="dit",
    signature=("x_embedder.proj.weight", "y_embedder.embedding_table.weight", "blocks.0.adaLN_modulation.1.weight"),
    blocks=("blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED | {"num_classes", "qkv_bias"},
    published=frozenset(("freq_shift", "mlp_norm_eps")),
    positions="pos_embed",
)
