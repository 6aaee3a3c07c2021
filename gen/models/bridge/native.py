"""diffusers' networks in our own ones, which compute the same, and have hooks inside of attention for caches and guidance.

The weights are read by the tables of `gen.models.formats`. What the empty prompt gives, the pipeline's text encoder tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.models.bridge.load import STEMS, VARIANTS, digest, find_weights, library_class
from gen.models.bridge.parts import TextPart
from gen.models.formats.files import open_checkpoint
from gen.models.formats.read import configure, read_checkpoint


def _place(folder: Path, variants: tuple[str, ...] = VARIANTS) -> Path:
    """What `open_checkpoint` opens: the file, which may be a variant such as fp16, or the folder of several."""
    _, files = find_weights(folder, STEMS["diffusers"], variants)
    return files[0] if len(files) == 1 else folder


@dataclass(frozen=True)
class Described:
    """A diffusers network that is not there, as far as its config tells what it is: of the whole config, defaults included."""

    config: Mapping[str, Any]


def described(name: str, config: Mapping[str, Any]) -> Described:
    """What readers of prompts and defaults ask a network of this class and config for."""
    parameters = inspect.signature(library_class(name).__init__).parameters.values()
    usual = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return Described({**usual, **config})


def why_not(folder: Path, format: str, options: Mapping[str, Any]) -> str | None:
    """Why our network cannot be what is in a diffusers transformer's folder; None where it can. Reads headers only.

    options: `Family.native_options`.
    """
    try:
        configure(open_checkpoint(_place(folder)), format, options)
    except ValueError as error:
        return str(error)
    return None


@torch.no_grad()
def native_network(
    folder: Path,
    format: str,
    text: TextPart | None,
    dtype: torch.dtype,
    variants: tuple[str, ...] = VARIANTS,
    options: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, str]:
    """(network, digest of its files) of a diffusers transformer's folder.

    text: the prompts' reader, where it reads any.
    variants: as of `gen.models.bridge.load.weight_files`.
    options: `Family.native_options`.
    """
    source = open_checkpoint(_place(folder, variants))
    told = dict(options or {}) | ({} if text is None else null_of(text))
    network = read_checkpoint(_place(folder, variants), format, dtype=dtype, **told)
    return network, digest(file.path for file in source.files)


@torch.no_grad()
def null_of(text: TextPart) -> dict:
    """The options of `read_checkpoint` that say what no text is: what the empty prompt gives."""
    empty = text.condition("")
    assert empty.tokens is not None and empty.mask is not None
    length, real = empty.tokens.shape[1], int(empty.mask.sum())
    pooled = {} if empty.pooled is None else {"null_pooled": empty.pooled[0].float()}
    null_length = None if real == length else real
    return {"null_text": empty.tokens[0].float(), "text_tokens": length, "null_length": null_length, **pooled}
