"""Thresholds: a predicted image brought back into its range. They act on x0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import at_least_float32, read_x0
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Clip(DenoiserWrapper):
    """Static thresholding: x0 clamped to [-limit, limit], 1 for images; 1 to 4 or so for latents.

    Source: Imagen, arXiv 2205.11487, section 2.3.
    """

    denoiser: Denoiser
    limit: float = 1.0

    def __post_init__(self) -> None:
        _check_limit(self.limit)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        prediction = self.denoiser(x, level, condition, context)
        # static thresholding of arXiv 2205.11487, section 2.3
        return prediction.with_x0(read_x0(prediction).clamp(-self.limit, self.limit))


@dataclass(frozen=True)
class DynamicThreshold(DenoiserWrapper):
    """x0 <- clamp(x0, -s, s) limit / s with s = max(limit, the `percentile` quantile of |x0|), per sample.

    Where few values leave [-limit, limit] nothing but those changes; where many do, all are drawn inwards. limit is the range
    that values may use: 1 for images, the usual extent of the latents for a latent model.

    Source: Imagen, arXiv 2205.11487, section 2.3.
    """

    denoiser: Denoiser
    percentile: float = 0.995
    limit: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.percentile, bool) or not 0 < self.percentile <= 1:
            raise ValueError(f"The percentile must lie above 0 and up to 1, got {self.percentile!r}; 0.995 is usual.")
        _check_limit(self.limit)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        prediction = self.denoiser(x, level, condition, context)
        x0 = at_least_float32(read_x0(prediction))
        # dynamic thresholding of arXiv 2205.11487, section 2.3
        s = _quantile(x0.abs().flatten(1), self.percentile).clamp(min=self.limit)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        return prediction.with_x0((torch.minimum(torch.maximum(x0, -s), s) * (self.limit / s)).to(prediction.x.dtype))


def _quantile(values: Tensor, q: float) -> Tensor:
    """(B, N) -> (B,), linear between order statistics; unlike torch.quantile without a bound on N."""
    position = q * (values.shape[1] - 1)
    low = math.floor(position)
    ranked = values.sort(1).values
    high = min(low + 1, values.shape[1] - 1)
    return torch.lerp(ranked[:, low], ranked[:, high], position - low)


def _check_limit(limit: float) -> None:
    if isinstance(limit, bool) or not 0 < limit < math.inf:
        raise ValueError(f"The limit of a threshold must be a finite number above 0, got {limit!r}; images use 1.")
