"""Latents of the emoji in one file: the general cache (distill/data/latents.py) for pictures that are all encoded at once.

The file, (N, V, C, h, w) in bfloat16, is named by a hash of all that it depends on. It is mapped, not read, so processes share
it, and a run of many passes opens one file rather than thousands.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from tqdm import trange

from distill.data.emoji.data import SHIPPED, EmojiConfig, EmojiData, Variant
from distill.data.latent_files import autoencoder_digest, check_finite, read_latents, write_latents
from distill.data.latents import CachedPictures, EmojiPictures
from distill.optim.precision import autocast
from gen.io.weights import sha256
from gen.models.components import load_component
from gen.nn.registry import Config


class EmojiLatentsConfig(Config):
    """`emoji`: the picture source's own settings. variants: of each picture, the plain one included."""

    emoji: EmojiConfig = EmojiConfig()
    autoencoder: Path
    variants: int = Field(default=16, gt=0)
    folder: Path = Path("data/latents")
    batch_size: int = Field(default=64, gt=0)


class EmojiLatents(CachedPictures):
    """A data source: as the emoji, with latents (B, C, h, w) in place of images. `all` has every picture's."""

    source: EmojiPictures

    def __init__(self, config: EmojiLatentsConfig, seed: int):
        settings = config.emoji.model_copy(update={"variants": config.variants})
        self.emoji = EmojiData(settings, seed)
        super().__init__(EmojiPictures(self.emoji))
        variants = [self.emoji.variant(index, k) for index in range(len(self.emoji)) for k in range(config.variants)]
        self.autoencoder_folder = config.autoencoder
        self.path = config.folder / f"{self._key(config, settings, variants)}.safetensors"
        stored = read_latents(self.path)
        if stored is not None and stored.shape[:2] != (len(self.emoji), config.variants):
            stored = None
        self.made = 0 if stored is not None else len(self.emoji)
        self.all = stored if stored is not None else self._make(config, variants)

    def _key(self, config: EmojiLatentsConfig, settings: EmojiConfig, variants: list[Variant]) -> str:
        """A hash of all that latents depend on: weights, archives, every variant, and how a sample of them is drawn."""
        weights, files = autoencoder_digest(config.autoencoder), settings.archives or (SHIPPED,)
        key = hashlib.sha256(repr((weights, [sha256(file) for file in files], settings.size, variants)).encode())
        key.update(self.emoji.render(variants[:: max(1, len(variants) // 64)]).numpy().tobytes())
        return key.hexdigest()[:16]

    @torch.no_grad()
    def _make(self, config: EmojiLatentsConfig, variants: list[Variant]) -> Tensor:
        autoencoder: Any = load_component(config.autoencoder, "autoencoder")
        parts = []
        for start in trange(0, len(variants), config.batch_size, desc="encoding", unit="batch"):
            pictures = self.emoji.render(variants[start : start + config.batch_size])
            with autocast(torch.device("cpu")):
                made = autoencoder.encode(pictures).bfloat16()
            parts.append(check_finite(made, f"the emoji {start} to {start + len(made) - 1}"))
        made = torch.cat(parts).unflatten(0, (len(self.emoji), config.variants)).contiguous()
        write_latents(self.path, made)
        return made

    def split(self, share: float) -> tuple[EmojiLatents, EmojiLatents]:
        """As of the pictures."""
        parts = []
        for emoji in self.emoji.split(share):
            parts.append(copy.copy(self))
            parts[-1].emoji, parts[-1].source = emoji, EmojiPictures(emoji)
        return parts[0], parts[1]

    def digest(self) -> str:
        """A hash of the pictures and of the weights that their latents are made by."""
        return self.path.stem

    def latents(self, index: int) -> tuple[int, Tensor]:
        return index, self.all[index]

    def fill(self) -> int:
        return self.made
