"""What of an IP-Adapter's file turns a picture's features into tokens: its kind by its tensors, in diffusers' modules.

Every kind is a module of diffusers, whose layers the authors' files call otherwise; here are the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.weights import CheckpointError

HEAD = 64  # channels of a head in resamplers
Rename = tuple[tuple[str, str], ...]

_RESAMPLER: Rename = (
    (r"^layers\.(\d+)\.0\.norm1\.", r"layers.\1.ln0."),
    (r"^layers\.(\d+)\.0\.norm2\.", r"layers.\1.ln1."),
    (r"^layers\.(\d+)\.(?:0|attn)\.to_out\.weight$", r"layers.\1.attn.to_out.0.weight"),
    (r"^layers\.(\d+)\.0\.to_", r"layers.\1.attn.to_"),
    (r"^layers\.(\d+)\.1\.0\.", r"layers.\1.ff.0."),
    (r"^layers\.(\d+)\.1\.1\.", r"layers.\1.ff.1.net.0.proj."),
    (r"^layers\.(\d+)\.1\.3\.", r"layers.\1.ff.1.net.2."),
)
_FEED_FORWARD: Rename = ((r"^proj\.0\.", "ff.net.0.proj."), (r"^proj\.2\.", "ff.net.2."))


@dataclass(frozen=True)
class Projection:
    """A module from features to tokens (B, L, D).

    reads: "embeds", the picture's embedding (B, E); "pooled", that of SigLIP; "states", the encoder's tokens before its last
        layer (B, T, H); "face", an embedding of a face (B, E); or "face states", both of the last.
    width: E or H; of "face states" that of the states. given: of what it is given first, E or H.
    tokens: L.
    shortcut: of "face states", the face's tokens are added to what the resampler makes of them (version 2).
    """

    module: nn.Module
    reads: str
    width: int
    tokens: int
    given: int
    shortcut: bool = False

    def __call__(self, features: Tensor, states: Tensor | None = None) -> Tensor:
        """features: N of them; states: of "face states" (N, T, H)."""
        module: Any = self.module
        if self.reads == "face states":
            assert states is not None
            module.clip_embeds, module.shortcut = states[:, None], self.shortcut
            try:
                return module(features)
            finally:
                module.clip_embeds = None
        return module(features)


def open_projection(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Projection:
    """The projection of the tensors behind `image_proj.` of a file. CheckpointError where they are of no known kind."""
    from diffusers.models import embeddings

    made: nn.Module
    try:
        if "proj.weight" in tensors:
            out, width = tensors["proj.weight"].shape
            dim = len(tensors["norm.weight"])
            made = embeddings.ImageProjection(width, dim, out // dim)
            renamed, reads, count = _renamed(tensors, ((r"^proj\.", "image_embeds."),)), "embeds", out // dim
        elif "proj.3.weight" in tensors:
            dim, width = tensors["proj.2.weight"].shape
            made = embeddings.IPAdapterFullImageProjection(width, dim)
            renamed, reads, count = _renamed(tensors, (*_FEED_FORWARD, (r"^proj\.3\.", "norm."))), "states", 0
        elif "perceiver_resampler.proj_in.weight" in tensors:
            return _face_plus(path, tensors, dtype)
        elif "proj.2.weight" in tensors:
            inner, width = tensors["proj.0.weight"].shape
            dim = len(tensors["norm.weight"])
            count = len(tensors["proj.2.weight"]) // dim
            made = embeddings.IPAdapterFaceIDImageProjection(width, dim, inner // width, count)
            renamed, reads = _renamed(tensors, _FEED_FORWARD), "face"
        elif "latents" in tensors:
            _, count, hidden = tensors["latents"].shape
            dim, width = len(tensors["proj_out.weight"]), tensors["proj_in.weight"].shape[1]
            renamed, reads = _renamed(tensors, _RESAMPLER), "states"
            made = embeddings.IPAdapterPlusImageProjection(
                width, dim, hidden, _depth(renamed), HEAD, _heads(renamed), count, _ratio(renamed, hidden)
            )
        else:
            raise CheckpointError(path, "has an image projection of no known kind: IP-Adapter, its plus and face forms are.")
    except (KeyError, ValueError, ZeroDivisionError, RuntimeError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"has a damaged image projection ({error}).") from None
    return Projection(_filled(path, made, renamed, dtype), reads, width, count, width)


def _face_plus(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Projection:
    from diffusers.models.embeddings import IPAdapterFaceIDPlusImageProjection

    inside = {key.removeprefix("perceiver_resampler."): value for key, value in tensors.items()}
    renamed = _renamed(inside, (*_RESAMPLER, (r"^proj\.0\.", "proj.net.0.proj."), (r"^proj\.2\.", "proj.net.2.")))
    hidden, width = inside["proj_in.weight"].shape
    inner, face = inside["proj.0.weight"].shape
    count = len(inside["proj.2.weight"]) // hidden
    made = IPAdapterFaceIDPlusImageProjection(
        hidden, len(inside["proj_out.weight"]), width, face, _depth(renamed), HEAD, _heads(renamed), count,
        ffn_ratio=_ratio(renamed, hidden), ffproj_ratio=inner // face,
    )  # fmt: skip
    # which version a file is of, only its name says
    second = "v2" in path.stem.lower()
    return Projection(_filled(path, made, renamed, dtype), "face states", width, count, face, second)


def _renamed(tensors: Mapping[str, Tensor], table: Rename) -> dict[str, Tensor]:
    """By diffusers' names; keys and values of one matrix apart."""
    renamed: dict[str, Tensor] = {}
    for key, value in tensors.items():
        for pattern, name in table:
            new, count = re.subn(pattern, name, key)
            if count:
                key = new
                break
        if ".to_kv." in key:
            for name, part in zip(("to_k", "to_v"), value.chunk(2), strict=True):
                renamed[key.replace("to_kv", name)] = part
        else:
            renamed[key] = value
    return renamed


def _depth(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("layers."))


def _heads(tensors: Mapping[str, Tensor]) -> int:
    return len(tensors["layers.0.attn.to_q.weight"]) // HEAD


def _ratio(tensors: Mapping[str, Tensor], hidden: int) -> float:
    return len(tensors["layers.0.ff.1.net.0.proj.weight"]) / hidden


def _filled(path: Path, module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> nn.Module:
    needed = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    problems: Sequence[str] = [
        key for key in (*needed, *tensors) if key not in tensors or needed.get(key) != tuple(tensors[key].shape)
    ]
    if problems:
        raise CheckpointError(path, f"has an image projection that does not fit {type(module).__name__}: {problems[0]!r:.100}.")
    module.load_state_dict(tensors)
    return module.to(dtype).eval().requires_grad_(False)
