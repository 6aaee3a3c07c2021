"""PixArt-alpha as its authors publish it (arXiv 2310.00426): 256, 512, and 1024 pixels, the last with size conditions.

`pos_embed` is a buffer there; which scale its positions have is read from it. A file without it needs `size`, and is given one
when it is written. The features of "no text" (`y_embedding`) are our `null_text`.
"""

from __future__ import annotations

from typing import Any

from gen.models.formats.dit import STORED, image_sizes
from gen.models.formats.format import (
    Format,
    Settings,
    Shapes,
    check_attention,
    count_blocks,
    given,
    heads_for,
    ratio,
    shape_of,
    side,
)

HEADS = {1152: 16}

TABLE = [
    ("pos_embed", "pos_embed"),
    ("x_embedder.proj.*", "patch_embed.*"),
    ("t_embedder.mlp.0.*", "time_embed.0.*"),
    ("t_embedder.mlp.2.*", "time_embed.2.*"),
    ("t_block.1.*", "shared_modulation.*"),
    ("csize_embedder.mlp.0.*", "size_embed.0.*"),
    ("csize_embedder.mlp.2.*", "size_embed.2.*"),
    ("ar_embedder.mlp.0.*", "aspect_embed.0.*"),
    ("ar_embedder.mlp.2.*", "aspect_embed.2.*"),
    ("y_embedder.y_proj.fc1.*", "text_embed.fc1.*"),
    ("y_embedder.y_proj.fc2.*", "text_embed.fc2.*"),
    ("y_embedder.y_embedding", "null_text"),
    ("blocks.{i}.scale_shift_table", "blocks.{i}.table"),
    ("blocks.{i}.attn.qkv.*", "blocks.{i}.attn.qkv.*"),
    ("blocks.{i}.attn.proj.*", "blocks.{i}.attn.proj.*"),
    ("blocks.{i}.cross_attn.q_linear.*", "blocks.{i}.cross.q.*"),
    ("blocks.{i}.cross_attn.kv_linear.*", "blocks.{i}.cross.kv.*"),
    ("blocks.{i}.cross_attn.proj.*", "blocks.{i}.cross.proj.*"),
    ("blocks.{i}.mlp.fc1.*", "blocks.{i}.mlp.fc1.*"),
    ("blocks.{i}.mlp.fc2.*", "blocks.{i}.mlp.fc2.*"),
    ("final_layer.linear.*", "head.*"),
    ("final_layer.scale_shift_table", "final_table"),
]


def scale_for(size: int) -> float:
    """How far apart neighbouring positions are for a latent size: 1 up to 64, 2 at 128."""
    return float(max(size // 64, 1))


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    sizes = image_sizes(shapes, "x_embedder.proj.weight", "final_layer.linear.weight")
    dim, depth = sizes["dim"], count_blocks(shapes, "blocks")
    check_attention(shapes, "blocks.0.attn.qkv.weight", dim, 3)
    check_attention(shapes, "blocks.0.cross_attn.kv_linear.weight", dim, 2)
    if "pos_embed" in shapes:
        size = sizes["patch"] * side(shape_of(shapes, "pos_embed", 3)[1], "pos_embed")
    else:
        size = given(settings, "size", "it has no pos_embed")
    tokens, text_dim = shape_of(shapes, "y_embedder.y_embedding", 2)
    config = {
        "type": "dit",
        **sizes,
        "size": size,
        "depth": depth,
        "heads": heads_for(dim, HEADS, settings),
        "mlp_ratio": ratio(shape_of(shapes, "blocks.0.mlp.fc1.weight", 2)[0], dim),
        "modulation": "adaln_single",
        "text_tokens": tokens,
        "text_dim": text_dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "position_scale": settings.get("position_scale") or scale_for(size),
    }
    return config | ({"size_conditions": True} if "csize_embedder.mlp.0.weight" in shapes else {})


FORMAT = Format(
    name="pixart",
    description="PixArt-alpha as its authors publish it",
    kind="dit",
    signature=("x_embedder.proj.weight", "t_block.1.weight", "y_embedder.y_embedding"),
    blocks=("blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED | {"text_tokens", "text_dim", "qkv_bias", "position_scale", "size_conditions"},
    fixed={"modulation": "adaln_single"},
    published=frozenset(("freq_shift", "mlp_norm_eps", "null_length")),
    positions="pos_embed",
    positions_optional=True,
)
