"""Distances between images and weights of noise levels that several methods share. Images (B, C, H, W); results (B,)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from samplers.path import NoiseLevel

Weight = Literal["uniform", "snr", "truncated_snr", "snr_plus_one", "edm"]


def squared(a: Tensor, b: Tensor) -> Tensor:
    """The mean over pixels of the squared difference, at least float32."""
    return _wide(a - b).square().flatten(1).mean(1)


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c with the norm of the whole image, so its gradient never exceeds 1 per sample.

    Source: arXiv 2310.14189, equation 7, which has c = 0.00054 sqrt(d) for images of d numbers.
    """
    total = _wide(a - b).square().flatten(1).sum(1)
    # arXiv 2310.14189, equation 7
    return total / ((total + c**2).sqrt() + c)  # the same without the difference, which loses digits where |a - b| << c


def elementwise_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """The mean over pixels of sqrt((a - b)^2 + c^2) - c: latent consistency models' Huber loss."""
    square = _wide(a - b).square()
    return (square / ((square + c**2).sqrt() + c)).flatten(1).mean(1)


def along(x: Tensor, direction: Tensor) -> Tensor:
    """(B,) whose gradient in x (B, ...) is a direction, up to 1 / numel: half the squared distance to x - direction."""
    x = _wide(x)
    return 0.5 * squared(x, (x - direction).detach())


def level_weight(kind: Weight, level: NoiseLevel, largest: float = float("inf")) -> Tensor:
    """What an error of x0 counts at a level, (B,); snr = alpha^2 / sigma^2.

    uniform 1; snr: an error of eps; truncated_snr: max(snr, 1) and snr_plus_one (on a variance-preserving path, an error of v),
    both of arXiv 2202.00512, section 4; edm: snr + 4, with which an error of EDM's F counts 1 (sigma_data 0.5, arXiv
    2206.00364, Table 1).
    """
    snr = (level.alpha / level.sigma) ** 2
    weight = {
        "uniform": lambda: torch.ones_like(snr),
        "snr": lambda: snr,
        "truncated_snr": lambda: snr.clamp(min=1.0),
        "snr_plus_one": lambda: snr + 1,
        "edm": lambda: snr + 4,
    }[kind]()
    return weight.clamp(max=largest)


def average(error: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(the mean of errors (B,) by their weights (B,), the plain mean to log)."""
    return (weight.to(error) * error).mean(), {"error": error.detach().mean()}


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB between pictures (..., H, W) in [-1, 1], over all of them; y is clamped first."""
    return -10 * ((y.clamp(-1, 1) - x).square().mean() / 4).clamp_min(1e-12).log10()
