"""ControlNets in one file: those of XLabs for FLUX, in the names of their authors' code.

They are FLUX's first joint blocks with a layer behind each, and read pixels by a few convolutions. diffusers has the same
network, FluxControlNetModel, under other names.

Source: XLabs-AI's x-flux (ControlNetFlux), as diffusers' FluxControlNetModel and ComfyUI read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError
from gen.models.bridge.files.configs import Config, count, head_count, published_head_width
from gen.models.bridge.files.fill import fill
from gen.models.bridge.files.kinds import Holder
from gen.models.bridge.files.layouts import Tensors
from gen.models.bridge.files.plans import planned
from gen.models.bridge.files.rows import Shapes
from gen.models.bridge.files.stored import StoredFile

HINTS = ("conv_in", *(f"blocks.{i}" for i in range(6)), "conv_out")  # the convolutions, of which every second entry is a SiLU
EMBED, BLOCK = "time_text_embed", r"double_blocks\.(\d+)"
# authors' name -> diffusers', as patterns; q, k and v are one layer there
NAMES = (
    (r"img_in\.(weight|bias)", r"x_embedder.\1"),
    (r"txt_in\.(weight|bias)", r"context_embedder.\1"),
    (r"pos_embed_input\.(weight|bias)", r"controlnet_x_embedder.\1"),
    *(
        (rf"{ours}_in\.{side}_layer\.(weight|bias)", rf"{EMBED}.{theirs}_embedder.linear_{number}.\1")
        for ours, theirs in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
        for number, side in ((1, "in"), (2, "out"))
    ),
    *(
        (rf"{BLOCK}\.{ours}\.(weight|bias)", rf"transformer_blocks.\1.{theirs}.\2")
        for ours, theirs in (
            *((r"img_mod\.lin", "norm1.linear"), (r"txt_mod\.lin", "norm1_context.linear")),
            *((r"img_attn\.proj", "attn.to_out.0"), (r"txt_attn\.proj", "attn.to_add_out")),
            *((r"img_mlp\.0", "ff.net.0.proj"), (r"img_mlp\.2", "ff.net.2")),
            *((r"txt_mlp\.0", "ff_context.net.0.proj"), (r"txt_mlp\.2", "ff_context.net.2")),
        )
    ),
    *(
        (rf"{BLOCK}\.{stream}_attn\.norm\.{ours}_norm\.scale", rf"transformer_blocks.\1.attn.norm_{added}{theirs}.weight")
        for stream, added in (("img", ""), ("txt", "added_"))
        for ours, theirs in (("query", "q"), ("key", "k"))
    ),
    (r"controlnet_blocks\.(\d+)\.(weight|bias)", r"controlnet_blocks.\1.\2"),
    *((rf"input_hint_block\.{2 * i}\.(weight|bias)", rf"input_hint_block.{name}.\1") for i, name in enumerate(HINTS)),
)
JOINED = re.compile(rf"{BLOCK}\.(img|txt)_attn\.qkv\.(weight|bias)")
PARTS = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}


def _config(shapes: Shapes) -> Config:
    """FluxControlNetModel of XLabs."""
    width, numbers = shapes["img_in.weight"]
    dim = published_head_width(shapes["double_blocks.0.img_attn.norm.key_norm.scale"], "FLUX.1")
    return {
        "patch_size": 2,
        "in_channels": numbers,
        "num_layers": count(shapes, "double_blocks."),
        "num_single_layers": 0,
        "attention_head_dim": dim,
        "num_attention_heads": head_count(width, dim),
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [16, 56, 56],
        "conditioning_embedding_channels": shapes[f"input_hint_block.{2 * len(HINTS) - 2}.weight"][0],
    }


def _convert(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    made: Tensors = {}
    for name, value in tensors.items():
        if joined := JOINED.fullmatch(name):
            for part, rows in zip(PARTS[joined[2]], value.chunk(3), strict=True):
                made[f"transformer_blocks.{joined[1]}.attn.{part}.{joined[3]}"] = rows
            continue
        found = next(((match, theirs) for ours, theirs in NAMES if (match := re.fullmatch(ours, name))), None)
        if found is None:
            raise ValueError(f"it has the unknown tensor {name!r:.100}")
        made[found[0].expand(found[1])] = value
    return made


XLABS = Holder("FluxControlNetModel", ("",), "input_hint_block.0.weight", _config, _convert)


class ControlFile:
    """A ControlNet's file before its weights are read. CheckpointError for one that is damaged, or of another kind.

    kind, config: of the network that diffusers has for it.
    """

    def __init__(self, path: Path):
        self.source = StoredFile(path)
        if not {XLABS.mark, "pos_embed_input.weight", "controlnet_blocks.0.weight"} <= self.source.shapes.keys():
            raise CheckpointError(
                path,
                "is no ControlNet that opens from one file, as XLabs' for FLUX do; give the folder that diffusers has of it.",
            )
        self.planned = planned(self.source, XLABS, "")
        self.kind, self.config = XLABS.class_name, self.planned.config

    def open(self, dtype: torch.dtype) -> tuple[nn.Module, str]:
        """(network, digest of the file)."""
        fill(self.source, [self.planned.filling(self.source, dtype)])
        return self.planned.network, file_digest(self.source.path)
