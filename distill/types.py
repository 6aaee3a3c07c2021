"""The values that a training run hands around: a batch, its random numbers, the networks' roles and the phases of a step.

Images are (B, 3, H, W) in [-1, 1], latents (B, C, h, w).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from samplers.noise import fold

SOURCE = "source"  # in `Batch.extra`: the pictures of another domain (B, 3, H, W) that go with, or stand beside, the images


@dataclass
class Batch:
    """One batch from a data source; what a source does not have stays None.

    index (B,) int64: the samples' global counters, from which every random number about them is drawn.
    images (B, 3, H, W) in [-1, 1] or latents (B, C, h, w); captions: B strings; labels (B,) class or concept indices.
    extra: what else there is, by name.
    """

    index: Tensor
    images: Tensor | None = None
    latents: Tensor | None = None
    captions: Sequence[str] | None = None
    labels: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        extra = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in self.extra.items()}
        return Batch(**{**vars(self), **moved, "extra": extra})

    def first(self, count: int) -> Batch:
        """Its first samples, or all where there are fewer, with the tensors of `extra`."""
        cut: dict[str, Any] = {k: None if v is None else v[:count] for k, v in vars(self).items() if k != "extra"}
        return Batch(**cut, extra={k: v[:count] for k, v in self.extra.items() if isinstance(v, Tensor)})


# pictures (N, 3, H, W) in [-1, 1] and their captions, None for none
Preview = tuple[Tensor, Sequence[str] | None]


@dataclass(frozen=True)
class Draws:
    """Counter-based random numbers for the samples of one batch: row i is a function of (seed, index[i], purpose).

    A sample counter is used once in a run, so neither the step nor the rank enters: one process or many, a long run or one
    resumed, the same sample gets the same numbers.
    """

    seed: int
    index: Tensor  # (B,) int64 on the CPU
    phase: str = ""

    def _rows(self, fill, purpose: str, device) -> Tensor:
        rows = []
        for counter in self.index.tolist():
            generator = torch.Generator().manual_seed(fold(self.seed, counter, self.phase, purpose))
            rows.append(fill(generator))
        return torch.stack(rows).to(device)

    def normal(self, purpose: str, shape: Sequence[int] = (), device=None) -> Tensor:
        """(B, *shape) unit normal."""
        return self._rows(lambda g: torch.randn(tuple(shape), generator=g), purpose, device)

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        """Unit normal, of the shape, device and type of a batch x (B, ...)."""
        return self.normal(purpose, x.shape[1:], x.device).to(x)

    def uniform(self, purpose: str, shape: Sequence[int] = (), device=None) -> Tensor:
        """(B, *shape) uniform in [0, 1)."""
        return self._rows(lambda g: torch.rand(tuple(shape), generator=g), purpose, device)


def drop_labels(batch: Batch, share: float, draws: Draws, group: int = 1) -> Batch:
    """The batch with a share of its labels dropped (-1), so that the row of a network's table which stands for no label, and
    which guidance asks for, is trained as well (arXiv 2207.12598, Algorithm 1). group: so many samples, one after another, are
    dropped together."""
    if batch.labels is None or not share:
        return batch
    return replace(batch, labels=torch.where(unlabelled(batch, share, draws, group), -1, batch.labels))


def unlabelled(batch: Batch, share: float, draws: Draws, group: int = 1) -> Tensor:
    """(B,) bool: the samples to train without a condition."""
    chance = draws.uniform("null", device=None if batch.labels is None else batch.labels.device)
    return chance.unflatten(0, (-1, group))[:, :1].expand(-1, group).flatten() < share


def knows_no_label(network: nn.Module) -> bool:
    """Does a network take labels and have a row for images without one?"""
    config: Any = getattr(network, "config", None)
    return bool(getattr(config, "num_classes", 0)) and bool(getattr(config, "null_label", True))


@dataclass(frozen=True)
class Role:
    """A network's part in a method: does it train, and is an averaged copy of it kept.

    follows: it is a frozen copy of one that trains, moved towards it or back, and cut into shards like that. second_order: its
    loss differentiates gradients (an exact gradient penalty), which shards drop without a word and compiled code refuses; it
    stays whole and is not compiled.
    """

    network: nn.Module
    trains: bool = True
    ema: bool = True
    follows: bool = False
    second_order: bool = False


@dataclass(frozen=True)
class Phase:
    """One optimiser update within a step: its name and the role whose weights it changes."""

    name: str
    role: str


def encoded(images: Tensor | None, autoencoder: Any, latent_scale: float) -> Tensor:
    """What is denoised (B, C, h, w) of pictures: their scaled latents in float32, or, without an autoencoder, the pictures
    themselves. ValueError for a batch that has none."""
    if images is None:
        raise ValueError("The data have neither latents nor pictures; give data of pictures.")
    if autoencoder is None:
        return images
    return autoencoder.to(images.device).encode(images).float() * latent_scale


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch, as they name themselves: counters, captions and labels."""
    chosen = rows.tolist()
    return Batch(
        index=batch.index[rows.to(batch.index.device)],
        captions=None if batch.captions is None else [batch.captions[row] for row in chosen],
        labels=None if batch.labels is None else batch.labels[rows.to(batch.labels.device)],
    )


def pictures_of(batch: Batch) -> Tensor:
    """The pictures (B, 3, H, W) of a batch. ValueError where it has none."""
    if batch.images is None:
        raise ValueError("The data have no pictures; give data of pictures, not of latents.")
    return batch.images
