"""Latents made once for any source of pictures: each picture seen through a frozen autoencoder, in a few variants.

One safetensors file per picture, (V, C, h, w) in bfloat16, named by a hash of the picture's bytes, of how it is cut and scaled,
and of the autoencoder's weights and settings. What changes is made again, and nothing else; a file that is not what its own
hash says is made again too. Files are renamed into place, so processes may fill one cache together. Where the disk is full,
training goes on without the cache.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor
from tqdm import tqdm

from distill.data.emoji.data import EmojiData
from distill.data.latent_files import autoencoder_digest, check_finite, read_latents, write_latents
from distill.data.pictures import stack
from distill.data.report import Report
from distill.types import Batch
from gen.models.components import load_component
from gen.nn.registry import Config


class Pictures(Protocol):
    """What is asked of a source of pictures, beside being a source (see distill.data.Source)."""

    def __len__(self) -> int: ...
    def choose(self, counters: Sequence[int]) -> list[tuple[int, int]]: ...  # (picture, variant)
    def variant(self, index: int, k: int) -> tuple[int, Tensor]: ...  # (the picture it is, (3, H, W))
    def fingerprint(self, index: int) -> str: ...  # of all that its variants depend on
    def name_of(self, index: int) -> str: ...
    def describe(self, chosen: Sequence[tuple[int, int]], counters: Sequence[int], **tensors: Tensor) -> Batch: ...


class EmojiPictures:
    """The emoji as a source of pictures."""

    def __init__(self, source: EmojiData):
        self.emoji, self.choose = source, source.choose

    def __len__(self) -> int:
        return len(self.emoji)

    def variant(self, index: int, k: int) -> tuple[int, Tensor]:
        return index, self.emoji.render([self.emoji.variant(index, k)])[0]

    def name_of(self, index: int) -> str:
        return self.emoji.records[index].file_name

    def fingerprint(self, index: int) -> str:
        settings, name = self.emoji.config, self.emoji.records[index].file_name
        depends = (name, settings.size, settings.recolor, settings.background, self.emoji.recolourable[index])
        return hashlib.sha256(self.emoji.pictures[index].numpy().tobytes() + repr(depends).encode()).hexdigest()

    def describe(self, chosen: Sequence[tuple[int, int]], counters: Sequence[int], **tensors: Tensor) -> Batch:
        variants = [self.emoji.variant(index, k) for index, k in chosen]
        captions = [self.emoji.caption(v, counter) for v, counter in zip(variants, counters, strict=True)]
        labels = self.emoji.labels[[index for index, _ in chosen]]
        images, latents = tensors.get("images"), tensors.get("latents")
        return Batch(torch.tensor(list(counters)), images, latents, captions=captions, labels=labels)


class LatentsConfig(Config):
    """source: the picture source's own settings, its type included. variants: of each picture, the plain one included."""

    source: dict[str, Any]
    autoencoder: Path
    variants: int = Field(default=1, gt=0)
    folder: Path = Path("data/latents")
    device: str = "cpu"  # where what is missing is encoded


class CachedPictures:
    """A source of pictures seen through a cache of latents; subclasses say where a picture's latents are."""

    def __init__(self, source: Pictures):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def latents(self, index: int) -> tuple[int, Tensor]:
        """(the picture it is, (V, C, h, w) bfloat16, one for each variant)."""
        raise NotImplementedError

    def fill(self) -> int:
        """Make what is missing; returns how many pictures that were."""
        raise NotImplementedError

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        """As the picture source's, with latents (B, C, h, w) in place of images."""
        numbers = [int(counter) for counter in counters]
        made = [(self.latents(index), k) for index, k in self.source.choose(numbers)]
        latents = stack([tensor[k].float() for (_, tensor), k in made])
        return self.source.describe([(actual, k) for (actual, _), k in made], numbers, latents=latents)

    def check(self) -> Report | None:
        return self.source.check() if hasattr(self.source, "check") else None


class Latents(CachedPictures):
    """A data source: as the picture source, with latents (B, C, h, w) in place of images."""

    def __init__(self, config: LatentsConfig, seed: int):
        from distill.data.source import make_source

        self.config = config
        if config.source.get("type") == "prompts" or "variants" in config.source:
            raise ValueError("A latent cache needs a source of pictures, and says itself how many variants there are of each.")
        source: Any = make_source({**config.source, "variants": config.variants}, seed)
        if isinstance(source, EmojiData):
            source = EmojiPictures(source)
        if not all(hasattr(source, name) for name in ("choose", "variant", "fingerprint", "describe")):
            raise ValueError(f"A latent cache needs a source of pictures; {config.source.get('type')!r} is not one.")
        super().__init__(source)
        self.autoencoder_folder: Path | None = config.autoencoder
        self.weights = autoencoder_digest(config.autoencoder)
        self._autoencoder: Any = None
        self._full = False
        self._paths: dict[int, Path] = {}

    def grouped(self, batch_size: int) -> Latents:
        if hasattr(self.source, "grouped"):
            self.source.grouped(batch_size)
        return self

    def split(self, share: float) -> tuple[Latents, Latents]:
        """As of the pictures."""
        given: Any = self.source.emoji if isinstance(self.source, EmojiPictures) else self.source
        parts = []
        for part in given.split(share):
            parts.append(copy.copy(self))
            parts[-1].source, parts[-1]._paths = EmojiPictures(part) if isinstance(part, EmojiData) else part, {}
        return parts[0], parts[1]

    def digest(self) -> str:
        """A hash of the pictures and of the weights that their latents are made by."""
        given: Any = self.source.emoji if isinstance(self.source, EmojiPictures) else self.source
        return hashlib.sha256(f"{given.digest()} {self.weights}".encode()).hexdigest()

    def path(self, index: int) -> Path:
        """Where a picture's latents are, or will be."""
        if index not in self._paths:
            text = f"{self.source.fingerprint(index)} {self.weights} {self.config.variants} bfloat16"
            key = hashlib.sha256(text.encode()).hexdigest()
            self._paths[index] = self.config.folder / key[:2] / f"{key[2:40]}.safetensors"
        return self._paths[index]

    @torch.no_grad()
    def _encode(self, index: int) -> tuple[int, Tensor]:
        """(V, C, h, w) bfloat16 of a picture, or of the one that the source gives in its place."""
        if self._autoencoder is None:
            self._autoencoder = load_component(self.config.autoencoder, "autoencoder").to(self.config.device)
        made = [self.source.variant(index, k) for k in range(self.config.variants)]
        pictures = torch.stack([picture for _, picture in made]).to(self.config.device)
        latents = self._autoencoder.encode(pictures).bfloat16().cpu()
        return made[0][0], check_finite(latents, f"picture {self.source.name_of(made[0][0])}")

    def latents(self, index: int) -> tuple[int, Tensor]:
        """From its file, else made and written."""
        found = _read(self.path(index), self.config.variants)
        if found is not None:
            return index, found
        actual, made = self._encode(index)
        if not self._full:
            try:
                write_latents(self.path(actual), made)
            except OSError as error:
                self._full = True
                reason = getattr(error, "strerror", None) or str(error)
                warnings.warn(f"{self.config.folder} takes no more latents ({reason}); training goes on without.", stacklevel=2)
        return actual, made

    def fill(self) -> int:
        missing = [index for index in range(len(self)) if _read(self.path(index), self.config.variants) is None]
        for index in tqdm(missing, desc="encoding", unit="picture"):
            self.latents(index)
        return len(missing)


def _read(path: Path, variants: int) -> Tensor | None:
    """The latents in a file, or None where it is absent or damaged."""
    latents = read_latents(path)
    return latents if latents is not None and latents.ndim == 4 and len(latents) == variants else None
