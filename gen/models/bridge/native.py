"""diffusers' DiT and PixArt in our own network, which computes the same, faster, and has hooks for caches and guidance.

The weights are read by the tables of `gen.models.formats`. What the empty prompt gives, the pipeline's text encoder tells.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gen.models.bridge.load import STEMS, VARIANTS, digest, find_weights
from gen.models.bridge.parts import TextPart
from gen.models.formats.files import open_checkpoint
from gen.models.formats.read import configure, read_checkpoint


def _place(folder: Path, variants: tuple[str, ...] = VARIANTS) -> Path:
    """What `open_checkpoint` opens: the file, which may be a variant such as fp16, or the folder of several."""
    _, files = find_weights(folder, STEMS["diffusers"], variants)
    return files[0] if len(files) == 1 else folder


def why_not(folder: Path, format: str) -> str | None:
    """Why our network cannot be what is in a diffusers transformer's folder; None where it can. Reads headers only."""
    try:
        configure(open_checkpoint(_place(folder)), format, {})
    except ValueError as error:
        return str(error)
    return None


@torch.no_grad()
def native_network(
    folder: Path, format: str, text: TextPart | None, dtype: torch.dtype, variants: tuple[str, ...] = VARIANTS
) -> tuple[nn.Module, str]:
    """(network, digest of its files) of a diffusers transformer's folder.

    text: the prompts' reader, where it reads any.
    variants: as of `gen.models.bridge.load.weight_files`.
    """
    source = open_checkpoint(_place(folder, variants))
    options = {} if text is None else null_of(text)
    network = read_checkpoint(_place(folder, variants), format, dtype=dtype, **options)
    return network, digest(file.path for file in source.files)


@torch.no_grad()
def null_of(text: TextPart) -> dict:
    """The options of `read_checkpoint` that say what no text is: what the empty prompt gives."""
    empty = text.condition("")
    assert empty.tokens is not None and empty.mask is not None
    length, real = empty.tokens.shape[1], int(empty.mask.sum())
    return {"null_text": empty.tokens[0].float(), "text_tokens": length, "null_length": None if real == length else real}
