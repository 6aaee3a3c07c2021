"""DiT as diffusers keeps it: `DiTTransformer2DModel`, or `Transformer2DModel` in older folders.

diffusers repeats the time and label embedding in every block. They are equal in every converted file; a file where they differ
is refused, since no DiT can hold it. Two things are not the authors': the frequencies of the time are spaced by 1/127 instead
of 1/128, and the norm before the MLP has an epsilon of 1e-5 unless the config says otherwise. A network read from this format
computes as diffusers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats.diffusers_config import BLOCK, BLOCK_ROWS, read_config, write_config
from gen.models.formats.dit import HEADS, STORED, image_sizes
from gen.models.formats.format import Format, Settings, Shapes, check_attention, count_blocks, given, heads_for, ratio, shape_of

NORM_EPS = 1e-5
EMB = f"{BLOCK}.norm1.emb"

TABLE = [
    ("pos_embed.proj.*", "patch_embed.*"),
    (f"{EMB}.timestep_embedder.linear_1.*", "time_embed.0.*"),
    (f"{EMB}.timestep_embedder.linear_2.*", "time_embed.2.*"),
    (f"{EMB}.class_embedder.embedding_table.weight", "label_embed.weight"),
    (f"{BLOCK}.norm1.linear.*", "blocks.{i}.modulation.*"),
    *BLOCK_ROWS,
    ("proj_out_1.*", "final_modulation.*"),
    ("proj_out_2.*", "head.*"),
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    sizes = image_sizes(shapes, "pos_embed.proj.weight", "proj_out_2.weight")
    dim, depth = sizes["dim"], count_blocks(shapes, "transformer_blocks")
    for part in "qkv":
        check_attention(shapes, f"transformer_blocks.0.attn1.to_{part}.weight", dim, 1)
    table = "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    return {
        "type": "dit",
        **sizes,
        "size": given(settings, "size", "the latent size stands in config.json beside it"),
        "depth": depth,
        "heads": heads_for(dim, HEADS, settings),
        "mlp_ratio": ratio(shape_of(shapes, "transformer_blocks.0.ff.net.0.proj.weight", 2)[0], dim),
        "num_classes": shape_of(shapes, table, 2)[0] - 1,
        "qkv_bias": "transformer_blocks.0.attn1.to_q.bias" in shapes,
        "gelu": settings.get("gelu", "tanh"),
        "mlp_norm_eps": settings.get("norm_eps", NORM_EPS),
        "freq_shift": 1,
    }


def config_out(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**write_config(config, "DiTTransformer2DModel"), "num_embeds_ada_norm": config["num_classes"]}


FORMAT = Format(
    name="diffusers-dit",
    description="DiT as diffusers keeps it, a folder",
    kind="dit",
    signature=(
        "pos_embed.proj.weight",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight",
        "proj_out_2.weight",
    ),
    blocks=("transformer_blocks",),
    table=TABLE,
    infer=infer,
    stored=STORED - {"mlp_ratio"} | {"num_classes", "qkv_bias", "gelu", "mlp_norm_eps"},
    fixed={"freq_shift": 1},
    published=frozenset(("freq_shift",)),
    config_in=lambda value: read_config(value, "ada_norm_zero", NORM_EPS),
    config_out=config_out,
)
