"""Layers that are denoised apart and blended by their alpha, then refined together.

Each layer has a canvas of its own and a condition of its own, so that what another covers is drawn too; one more canvas is what
they look like together. Above a noise level the clean images of the layers are blended by how much of each is seen; below it,
the canvas goes on alone, under the condition of the whole scene, and lights, shadows and seams come to fit.

Source: Generating Compositional Scenes via Text-to-image RGBA Instance Generation, arXiv 2411.10913 (its multi-layer composite
generation, with layers that are made at the same time instead of before).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.multi_model.masks import check_mask
from samplers.path import NoiseLevel, wide_dtype
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


def shares_seen(alphas: Sequence[Tensor]) -> list[Tensor]:
    """How much of each layer is seen, the lowest first: alpha_k times the product of (1 - alpha_j) of those above it, by which
    `over` is a sum. Each (1, 1, H, W)."""
    clear = torch.ones_like(alphas[0])
    shares: list[Tensor] = []
    for alpha in reversed(alphas):
        shares.append(alpha * clear)
        clear = clear * (1 - alpha)
    return shares[::-1]


@dataclass(frozen=True)
class BlendedLayers(DenoiserWrapper):
    """Around a denoiser of (1 + K) B rows: the canvas of B pictures, then the K layers of each, the lowest first.

    shares: of the layers, (1 or B, 1, H, W) each, which sum to 1. until: the log-SNR from which the canvas goes on alone.
    condition: that of all rows, where the run's own is not. All rows must begin with the same noise, and be given the same:
    then the canvas is at every level the layers' blend.
    """

    denoiser: Denoiser
    shares: tuple[Tensor, ...]
    until: float
    condition: Condition | None = None

    def __post_init__(self) -> None:
        if not self.shares:
            raise ValueError("There are no layers; give one or more.")
        for i, share in enumerate(self.shares):
            check_mask(share, f"layer {i}")
        total = torch.stack([share.to(wide_dtype(share.device)) for share in self.shares]).sum(0)
        if bool(((total - 1).abs() > 1e-4).any()):
            raise ValueError("What is seen of the layers does not sum to 1 everywhere; let the lowest one cover the canvas.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if len(x) % (1 + len(self.shares)):
            raise ValueError(f"{len(x)} rows are not a canvas and {len(self.shares)} layers for each picture.")
        said = self.denoiser(x, level, condition if self.condition is None else self.condition, context.fork("layers"))
        if level.logsnr >= self.until:
            return said
        _, *layers = said.x0.chunk(1 + len(self.shares))
        shares = context.memo("layer shares", (self.shares,), lambda: [share.to(x) for share in self.shares])
        blended = torch.stack([share * layer for share, layer in zip(shares, layers, strict=True)]).sum(0)
        return said.with_x0(torch.cat([blended, *layers]))
