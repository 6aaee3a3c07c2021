"""Z-Image and Z-Image-Turbo as diffusers keeps them: `ZImageTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats.format import Format, Settings, Shapes, check_attention
from gen.models.formats.joint import axes_of, read_config
from gen.models.formats.table import Table
from gen.models.formats.z_image import AXES, FIXED, KEPT, PATCH, ends, sizes, stacks

EMBED, FINAL = f"all_x_embedder.{PATCH}-1", f"all_final_layer.{PATCH}-1"
LENGTHS = [1024, 512, 512]  # of diffusers' tables of positions

TABLE: Table = [
    *ends(EMBED, FINAL),
    *stacks(
        [
            (("to_q.weight", "to_k.weight", "to_v.weight"), "qkv.weight"),
            ("to_out.0.weight", "proj.weight"),
            ("norm_q.weight", "q_norm.weight"),
            ("norm_k.weight", "k_norm.weight"),
        ]
    ),
]


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    config = sizes(shapes, settings, EMBED, FINAL, "norm_q")
    for part in "qkv":
        check_attention(shapes, f"layers.0.attention.to_{part}.weight", config["dim"], 1)
    return config


def config_in(value: Mapping[str, Any]) -> dict[str, Any]:
    needed: dict[str, Any] = {"all_patch_size": ([PATCH],), "all_f_patch_size": ([1],), "norm_eps": (1e-5,), "qk_norm": (True,)}
    needed |= {"siglip_feat_dim": (None,), "rope_theta": (256.0,), "t_scale": (1000.0,)}
    told = {"in_channels", "dim", "n_layers", "n_refiner_layers", "n_kv_heads", "cap_feat_dim", "axes_dims", "axes_lens"}
    settings = read_config(value, "ZImageTransformer2DModel", {"heads": ("n_heads", 30)}, needed, told)
    return {**settings, "axes": axes_of(value, "axes_dims", AXES)}


def config_out(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_class_name": "ZImageTransformer2DModel",
        "all_patch_size": [PATCH],
        "all_f_patch_size": [1],
        "in_channels": config["channels"],
        "dim": config["dim"],
        "n_layers": config["depth"],
        "n_refiner_layers": config["refiner_depth"],
        "n_heads": config["heads"],
        "n_kv_heads": config["heads"],
        "norm_eps": 1e-5,
        "qk_norm": True,
        "cap_feat_dim": config["text_dim"],
        "siglip_feat_dim": None,
        "rope_theta": 256.0,
        "t_scale": 1000.0,
        "axes_dims": list(config["axes"]),
        "axes_lens": LENGTHS,
    }


FORMAT = Format(
    name="diffusers-z-image",
    description="Z-Image as diffusers keeps it, a folder",
    kind="z_image",
    signature=(f"{EMBED}.weight", "x_pad_token", "layers.0.attention.to_q.weight"),
    blocks=("layers", "noise_refiner", "context_refiner"),
    table=TABLE,
    infer=infer,
    stored=KEPT,
    fixed=FIXED,
    published=frozenset(("padded_text",)),
    absent=("null_text",),
    config_in=config_in,
    config_out=config_out,
)
