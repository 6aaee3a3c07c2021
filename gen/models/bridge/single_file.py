"""Whole models in one file, as they are passed around: recognised by the names of their tensors, and what to do with them.

They are diffusers' to read: it knows their configs, and makes of them the folders that open here.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from gen.io.weights import CheckpointError

# (what it is, the pipeline of diffusers that reads it, tensors that only it has); the first that fits
KINDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Stable Diffusion 3", "StableDiffusion3Pipeline", ("joint_blocks.0.context_block.attn.qkv.weight",)),
    ("FLUX", "FluxPipeline", ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")),
    ("SDXL", "StableDiffusionXLPipeline", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    ("Stable Diffusion 1 or 2", "StableDiffusionPipeline", ("input_blocks.0.0.weight", "middle_block.1.transformer_blocks.0")),
)
PREFIX = "model.diffusion_model."
BESIDE = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.", "vae.")


def kind_of(names: Collection[str]) -> tuple[str, str] | None:
    """(what the file holds, diffusers' pipeline for it) by the names of its tensors; None for other files."""
    inner = {name.removeprefix(PREFIX) for name in names}
    for what, pipeline, marks in KINDS:
        if all(any(name.startswith(mark) for name in inner) for mark in marks):
            return what, pipeline
    return None


def refuse(path: Path, names: Collection[str]) -> None:
    """CheckpointError that says what the file is and how to open it, where it is one of KINDS."""
    kind = kind_of(names)
    if kind is None:
        return
    what, pipeline = kind
    has_parts = any(name.startswith(BESIDE) for name in names)
    if not has_parts:
        raise CheckpointError(
            path,
            f"is the network of {what} alone, in its authors' format; download the diffusers folder of the model from the hub, "
            "which has the text encoders and the autoencoder too, and open that.",
        )
    raise CheckpointError(
        path,
        f"is {what} in one file. Make a folder of it with diffusers, once, and open that: python -c "
        f"\"from diffusers import {pipeline} as P; P.from_single_file('{path.name}').save_pretrained('{path.stem}')\".",
    )
