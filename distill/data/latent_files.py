"""Files of cached latents: what is read is what was written, and finite, or it counts as absent and is made again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from distill.data.errors import DataError
from gen.io.errors import regular_file
from gen.io.weights import CheckpointError, finite, read_json, write_weights
from gen.models.components import component_digest

NAME, HASH = "latents", "sha256"


def content_hash(latents: Tensor) -> str:
    """A hash of the shape and the bytes."""
    data = latents.contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(repr(tuple(latents.shape)).encode() + data.tobytes()).hexdigest()


def read_latents(path: Path) -> Tensor | None:
    """The bfloat16 latents in a file; None where it is absent, damaged, or holds what is not finite."""
    try:
        regular_file(path)
        with safe_open(path, framework="pt") as file:
            latents, recorded_hash = file.get_tensor(NAME), (file.metadata() or {}).get(HASH)
    except (CheckpointError, OSError, SafetensorError, RuntimeError, ValueError):
        return None
    good = latents.dtype == torch.bfloat16 and latents.numel() and recorded_hash == content_hash(latents) and finite(latents)
    return latents if good else None


def write_latents(path: Path, latents: Tensor) -> None:
    """Write latents with their hash, in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_weights(path, {NAME: latents}, metadata={HASH: content_hash(latents)})


def check_finite(latents: Tensor, what: str) -> Tensor:
    """The latents; DataError where an autoencoder made something else than numbers of a picture."""
    if not finite(latents):
        raise DataError(
            f"The autoencoder makes NaN or infinite latents of {what}; nothing was kept. Check its weights, or the "
            "precision it is run in."
        )
    return latents


def autoencoder_digest(folder: Path) -> str:
    """A hash of an autoencoder's weights and settings: all that latents of a picture depend on."""
    return hashlib.sha256(f"{component_digest(folder)} {_sorted(read_json(folder / 'config.json'))}".encode()).hexdigest()


def opened_digest(autoencoder: nn.Module, weights: str) -> str:
    """The same of one that is open, the hash of whose weights is known; "" where it is not."""
    config: Any = getattr(autoencoder, "config", None)
    settings = config.model_dump() if hasattr(config, "model_dump") else getattr(config, "__dict__", config)
    sorted_settings = _sorted(settings) if isinstance(settings, dict) else repr(settings)
    text = f"{weights} {type(autoencoder).__name__} {sorted_settings} {getattr(autoencoder, 'latent_scale', None)}"
    return hashlib.sha256(text.encode()).hexdigest() if weights else ""


def _sorted(settings: dict) -> str:
    return repr(sorted((str(key), repr(value)) for key, value in settings.items()))
