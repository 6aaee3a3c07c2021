"""Latents made once: a picture source seen through a frozen autoencoder, with a fixed number of variants per picture.

Encoding costs about as much as training on the latent, so a run of many passes saves most of it. The cache is one
safetensors file (N, V, C, h, w) in bfloat16, keyed by the autoencoder's weights and the data's config: anything else is
made anew. Captions stay fresh, as they are drawn per sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import trange

from distill.objective import Batch
from gen.checkpoints import sha256, write_weights
from gen.components import Config, load_component


class LatentCacheConfig(Config):
    """`emoji` is the picture source's own section; it must set `variants`."""

    emoji: dict[str, Any] = {}
    autoencoder: Path
    variants: int = Field(16, gt=0)
    folder: Path = Path("data/latents")
    batch_size: int = Field(64, gt=0)


class LatentCache:
    """`batch` as the picture source's, with latents (B, C, h, w) in place of images."""

    def __init__(self, config: LatentCacheConfig, seed: int):
        from distill.emoji.data import EmojiConfig, EmojiData

        settings = {**config.emoji, "variants": config.variants}
        self.source = EmojiData(EmojiConfig(**settings), seed)
        weights = config.autoencoder / "model.safetensors"
        key = json.dumps([sha256(weights), settings, [str(p) for p in self.source.archive_hashes], seed], sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:16]
        self.path = config.folder / f"{name}.safetensors"
        self.latents = _read(self.path)
        if self.latents is None:
            self.latents = self._make(load_component(config.autoencoder, "autoencoder"), config)
            config.folder.mkdir(parents=True, exist_ok=True)
            write_weights(self.path, {"latents": self.latents})

    @torch.no_grad()
    def _make(self, autoencoder: nn.Module, config: LatentCacheConfig) -> Tensor:
        jobs = [(index, k) for index in range(len(self.source)) for k in range(config.variants)]
        parts = []
        for start in trange(0, len(jobs), config.batch_size, desc="encoding", unit="batch"):
            pictures = self.source.render([self.source.variant(i, k) for i, k in jobs[start : start + config.batch_size]])
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(autoencoder.encode(pictures).bfloat16())
        return torch.cat(parts).unflatten(0, (len(self.source), config.variants)).contiguous()

    def batch(self, counters: Sequence[int]) -> Batch:
        chosen = self.source.choose(counters)
        variants = [self.source.variant(index, k) for index, k in chosen]
        index, k = torch.tensor(chosen).unbind(1)
        return Batch(
            index=torch.tensor(list(counters)),
            latents=self.latents[index, k].float(),
            captions=[self.source.caption(v, counter) for v, counter in zip(variants, counters, strict=True)],
            labels=self.source.labels[index],
        )


def _read(path: Path) -> Tensor | None:
    """The cached latents, or None where there is no usable file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("latents")
    except (OSError, SafetensorError, FileNotFoundError):
        return None
