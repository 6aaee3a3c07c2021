"""PixArt-alpha as diffusers keeps it: `PixArtTransformer2DModel`, or `Transformer2DModel` in older folders.

The format has no features for "no text": diffusers encodes the empty prompt each time. `null_text` gives them to
`gen.models.formats.read_checkpoint`, `null_length` how many of its tokens are real; without it they are zeros, and every call
should bring its own negative text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats.diffusers_config import BLOCK, BLOCK_ROWS, read_config, write_config
from gen.models.formats.dit import STORED, image_sizes
from gen.models.formats.format import Format, Settings, Shapes, check_attention, count_blocks, given, heads_for, ratio, shape_of
from gen.models.formats.pixart import HEADS, scale_for

NORM_EPS = 1e-6
TOKENS = 120
EMB = "adaln_single.emb"

TABLE = [
    ("pos_embed.proj.*", "patch_embed.*"),
    (f"{EMB}.timestep_embedder.linear_1.*", "time_embed.0.*"),
    (f"{EMB}.timestep_embedder.linear_2.*", "time_embed.2.*"),
    (f"{EMB}.resolution_embedder.linear_1.*", "size_embed.0.*"),
    (f"{EMB}.resolution_embedder.linear_2.*", "size_embed.2.*"),
    (f"{EMB}.aspect_ratio_embedder.linear_1.*", "aspect_embed.0.*"),
    (f"{EMB}.aspect_ratio_embedder.linear_2.*", "aspect_embed.2.*"),
    ("adaln_single.linear.*", "shared_modulation.*"),
    ("caption_projection.linear_1.*", "text_embed.fc1.*"),
    ("caption_projection.linear_2.*", "text_embed.fc2.*"),
    (f"{BLOCK}.scale_shift_table", "blocks.{i}.table"),
    *BLOCK_ROWS,
    (f"{BLOCK}.attn2.to_q.*", "blocks.{i}.cross.q.*"),
    ((f"{BLOCK}.attn2.to_k.*", f"{BLOCK}.attn2.to_v.*"), "blocks.{i}.cross.kv.*"),
    (f"{BLOCK}.attn2.to_out.0.*", "blocks.{i}.cross.proj.*"),
    ("scale_shift_table", "final_table"),
    ("proj_out.*", "head.*"),
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    sizes = image_sizes(shapes, "pos_embed.proj.weight", "proj_out.weight")
    dim, depth = sizes["dim"], count_blocks(shapes, "transformer_blocks")
    for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_k", "attn2.to_v"):
        check_attention(shapes, f"transformer_blocks.0.{name}.weight", dim, 1)
    if settings.get("norm_eps", NORM_EPS) != NORM_EPS:
        raise ValueError(f"has norm_eps {settings['norm_eps']}; PixArt has {NORM_EPS}")
    size = given(settings, "size", "the latent size stands in config.json beside it")
    config = {
        "type": "dit",
        **sizes,
        "size": size,
        "depth": depth,
        "heads": heads_for(dim, HEADS, settings),
        "mlp_ratio": ratio(shape_of(shapes, "transformer_blocks.0.ff.net.0.proj.weight", 2)[0], dim),
        "modulation": "adaln_single",
        "text_tokens": settings.get("text_tokens") or TOKENS,
        "text_dim": shape_of(shapes, "caption_projection.linear_1.weight", 2)[1],
        "null_length": settings.get("null_length", 0),
        "qkv_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
        "gelu": settings.get("gelu", "tanh"),
        "position_scale": settings.get("position_scale") or scale_for(size),
    }
    return config | ({"size_conditions": True} if f"{EMB}.resolution_embedder.linear_1.weight" in shapes else {})


def config_out(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **write_config(config, "PixArtTransformer2DModel"),
        "cross_attention_dim": config["dim"],
        "caption_channels": config["text_dim"],
        "interpolation_scale": config["position_scale"],
        "use_additional_conditions": bool(config.get("size_conditions")),
    }


FORMAT = Format(
    name="diffusers-pixart",
    description="PixArt-alpha as diffusers keeps it, a folder",
    kind="dit",
    signature=("pos_embed.proj.weight", "adaln_single.linear.weight", "caption_projection.linear_1.weight"),
    blocks=("transformer_blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED - {"mlp_ratio"} | {"text_tokens", "text_dim", "gelu", "position_scale", "size_conditions", "null_length"},
    fixed={"modulation": "adaln_single"},
    published=frozenset(("freq_shift", "mlp_norm_eps")),
    absent=("null_text",),
    config_in=lambda value: read_config(value, "ada_norm_single", NORM_EPS),
    config_out=config_out,
)
