"""Latents of the emoji made once: pictures seen through a frozen autoencoder, with a fixed number of variants each.

`python -m distill.cache CONFIG key=value ...` makes all latents that a training config's data section asks for, for this
source and for the general one, `type: latents` (distill/sources/latents.py).

Encoding costs about as much as training on the latent, so a run of many passes saves most of it. The cache is one
safetensors file (N, V, C, h, w) in bfloat16, named by a hash of all that it depends on. Captions stay fresh, as they are
drawn per sample.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import trange

from distill.emoji.data import SHIPPED, EmojiConfig, EmojiData, Variant
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
        jobs = [(index, k) for index in range(len(self.source)) for k in range(config.variants)]
        variants = [self.source.variant(index, k) for index, k in jobs]
        self.path = config.folder / f"{self._key(config, settings, variants)}.safetensors"
        self.latents = _read(self.path)
        if self.latents is None:
            self.latents = self._make(load_component(config.autoencoder, "autoencoder"), config, variants)
            config.folder.mkdir(parents=True, exist_ok=True)
            write_weights(self.path, {"latents": self.latents})

    def __len__(self) -> int:
        return len(self.source)

    def _key(self, config: LatentCacheConfig, settings: EmojiConfig, variants: list[Variant]) -> str:
        """A hash of all that latents depend on: weights, archives, every variant, and how a sample of them is drawn."""
        files = [config.autoencoder / "model.safetensors", *(settings.archives or (SHIPPED,))]
        key = hashlib.sha256(repr(([sha256(file) for file in files], settings.size, variants)).encode())
        key.update(self.source.render(variants[:: max(1, len(variants) // 64)]).numpy().tobytes())
        return key.hexdigest()[:16]

    @torch.no_grad()
    def _make(self, autoencoder: nn.Module, config: LatentCacheConfig, variants: list[Variant]) -> Tensor:
        parts = []
        for start in trange(0, len(variants), config.batch_size, desc="encoding", unit="batch"):
            pictures = self.source.render(variants[start : start + config.batch_size])
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distill.cache", description="Make the latents that a training run needs.")
    parser.add_argument("config", help="a training config with data of type latents or emoji_latents")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.variants=4")
    given = parser.parse_args(arguments)
    from distill.config import load_config
    from distill.data import make_source

    try:
        config = load_config(given.config, given.overrides)
        if config.data.get("type") not in ("latents", "emoji_latents"):
            raise ValueError(f"The data of {given.config} are of type {config.data.get('type')!r}; wrap them as type: latents.")
        source: Any = make_source(config.data, config.seed)
        made = source.fill() if hasattr(source, "fill") else len(source)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(source)} pictures, {made} of them encoded or read anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
