"""Latents made once: a picture source seen through a frozen autoencoder, with a fixed number of variants per picture.

Encoding costs about as much as training on the latent, so a run of many passes saves most of it. The cache is one
safetensors file (N, V, C, h, w) in bfloat16, keyed by the autoencoder's weights, the archives and the variants' settings:
anything else is made anew. Captions stay fresh, as they are drawn per sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import trange

from distill.emoji.data import SHIPPED, EmojiConfig, EmojiData
from distill.objective import Batch
from gen.checkpoints import sha256, write_weights
from gen.components import Config, load_component


class LatentCacheConfig(Config):
    """`emoji`: the picture source's own settings. variants: of each picture, the plain one included."""

    emoji: EmojiConfig = EmojiConfig()
    autoencoder: Path
    variants: int = Field(16, gt=0)
    folder: Path = Path("data/latents")
    batch_size: int = Field(64, gt=0)


class LatentCache:
    """`batch` as the picture source's, with latents (B, C, h, w) in place of images."""

    def __init__(self, config: LatentCacheConfig, seed: int):
        settings = config.emoji.model_copy(update={"variants": config.variants})
        self.source = EmojiData(settings, seed)
        files = [config.autoencoder / "model.safetensors", *(settings.archives or (SHIPPED,))]
        looks = settings.model_dump(include={"size", "variants", "recolor", "background"})
        key = json.dumps([[sha256(file) for file in files], looks], sort_keys=True)
        self.path = config.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
        self.latents = _read(self.path)
        if self.latents is None:
            self.latents = self._make(load_component(config.autoencoder, "autoencoder"), config)
            config.folder.mkdir(parents=True, exist_ok=True)
            write_weights(self.path, {"latents": self.latents})

    def __len__(self) -> int:
        return len(self.source)

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
