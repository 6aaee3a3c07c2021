"""FLUX.1 as diffusers keeps it: `FluxTransformer2DModel`.

Its config does not tell for which size the network was made, which is 128 latent pixels unless given, nor how long texts are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.formats.diffusers_sd3 import EMBED, EMBEDS, HEAD, JOINT_BLOCK, qkv
from gen.models.formats.format import Format, Settings, Shapes, check_attention, ratio, shape_of
from gen.models.formats.joint import STORED, axes_of, head_count, numbered, read_config, told_text
from gen.models.formats.table import Table

SIZE, PATCH = 128, 2
ROOM, USUAL = 512, 512  # tokens of T5
GUIDANCE = 3.5
AXES = (16, 56, 56)
SINGLE = "single_transformer_blocks.{i}"
FIXED = {"padded_text": False, "patch": PATCH}

TABLE: Table = [
    ("x_embedder.*", "patch_embed.*"),
    *EMBEDS,
    (f"{EMBED}.guidance_embedder.linear_1.*", "scalar_embeds.guidance.0.*"),
    (f"{EMBED}.guidance_embedder.linear_2.*", "scalar_embeds.guidance.2.*"),
    *JOINT_BLOCK,
    (f"{SINGLE}.norm.linear.*", "single_blocks.{i}.modulation.*"),
    qkv(f"{SINGLE}.attn", "single_blocks.{i}.attn"),
    (f"{SINGLE}.attn.norm_q.weight", "single_blocks.{i}.attn.q_norm.weight"),
    (f"{SINGLE}.attn.norm_k.weight", "single_blocks.{i}.attn.k_norm.weight"),
    (f"{SINGLE}.proj_mlp.*", "single_blocks.{i}.fc1.*"),
    (f"{SINGLE}.proj_out.*", "single_blocks.{i}.proj.*"),
    *HEAD,
]


def sizes(shapes: Shapes, settings: Settings, names: Mapping[str, str], depths: tuple[int, int]) -> dict[str, Any]:
    """The config, by the names that a format has for what sizes are read from. depths: of joint and of single blocks."""
    (dim, read), made = shape_of(shapes, names["patches"], 2), shape_of(shapes, names["head"], 2)[0]
    fills = bool(settings.get("fills"))
    if made % PATCH**2 or read % PATCH**2 or (read <= made if fills else read != made):
        needed = "a network that fills reads more than it makes" if fills else "both must be as many, unless it fills pictures"
        raise ValueError(f"reads {read} numbers of a patch and makes {made}; {needed}")
    if not all(depths):
        raise ValueError("has no joint or no single blocks")
    heads = head_count(shapes, names["norm"], dim, settings)
    axes = settings.get("axes") or (AXES if sum(AXES) == dim // heads else None)
    if axes is None or sum(axes) != dim // heads:
        raise ValueError(f"has heads of {dim // heads} channels, and the axes of its positions are {axes}; give axes")
    guided = names["guidance"] in shapes
    return {
        "type": "flux",
        "size": settings.get("size") or SIZE,
        "patch": PATCH,
        "channels": made // PATCH**2,
        "beside": (read - made) // PATCH**2,
        "pictures": settings.get("pictures") or 0,
        "dim": dim,
        "depth": depths[0],
        "single_depth": depths[1],
        "heads": heads,
        "mlp_ratio": ratio(shape_of(shapes, names["hidden"], 2)[0], dim),
        "axes": tuple(axes),
        "text_dim": shape_of(shapes, names["text"], 2)[1],
        "pooled_dim": shape_of(shapes, names["pooled"], 2)[1],
        "scalars": ("guidance",) if guided else (),
        "usual_guidance": GUIDANCE if guided else None,
        "padded_text": False,
        **told_text(settings, ROOM, USUAL),
    }


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    names = {
        "patches": "x_embedder.weight",
        "head": "proj_out.weight",
        "norm": "transformer_blocks.0.attn.norm_q.weight",
        "guidance": f"{EMBED}.guidance_embedder.linear_1.weight",
        "hidden": "transformer_blocks.0.ff.net.0.proj.weight",
        "text": "context_embedder.weight",
        "pooled": f"{EMBED}.text_embedder.linear_1.weight",
    }
    depths = numbered(shapes, "transformer_blocks"), numbered(shapes, "single_transformer_blocks")
    config = sizes(shapes, settings, names, depths)
    for part in "qkv":
        check_attention(shapes, f"transformer_blocks.0.attn.to_{part}.weight", config["dim"], 1)
    return config


def config_in(value: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {"heads": ("num_attention_heads", 24), "head_dim": ("attention_head_dim", 128)}
    told = {"in_channels", "out_channels", "num_layers", "num_single_layers", "joint_attention_dim", "pooled_projection_dim"}
    told |= {"guidance_embeds", "axes_dims_rope"}
    settings = read_config(value, "FluxTransformer2DModel", numbers, {"patch_size": (1,)}, told)
    return {**settings, "axes": axes_of(value, "axes_dims_rope", AXES)}


def config_out(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": (config["channels"] + config["beside"]) * config["patch"] ** 2,
        "out_channels": config["channels"] * config["patch"] ** 2 if config["beside"] else None,
        "num_layers": config["depth"],
        "num_single_layers": config["single_depth"],
        "num_attention_heads": config["heads"],
        "attention_head_dim": config["dim"] // config["heads"],
        "joint_attention_dim": config["text_dim"],
        "pooled_projection_dim": config["pooled_dim"],
        "guidance_embeds": "guidance" in config["scalars"],
        "axes_dims_rope": list(config["axes"]),
    }


FORMAT = Format(
    name="diffusers-flux",
    description="FLUX.1 as diffusers keeps it, a folder",
    kind="flux",
    signature=("x_embedder.weight", "context_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    blocks=("transformer_blocks", "single_transformer_blocks"),
    table=TABLE,
    infer=infer,
    stored=STORED | {"single_depth", "axes", "usual_guidance", "pictures", "beside"},
    fixed=FIXED,
    published=frozenset(("padded_text",)),
    absent=("null_text", "null_pooled"),
    config_in=config_in,
    config_out=config_out,
)
