"""Classifier-free guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel, Path, Scalar, expand
from samplers.prediction import Prediction


@dataclass(frozen=True)
class ClassifierFree:
    """raw = raw_null + scale (raw_cond - raw_null): scale 1 is the plain conditional model, more follows the condition more.

    `negative` takes the place of the empty condition (batch of x's, or 1). Both branches run as one batch of 2B, conditional
    half first. Where they are not needed they do not run: scale 1, or a level outside `interval`, evaluates only the
    condition; scale 0 only the null. interval: (lowest, highest) logsnr at which guidance acts (arXiv 2404.07724).
    A learned variance is the conditional branch's.

    Source: arXiv 2207.12598, equation 6, with scale = 1 + w.
    """

    denoiser: Denoiser
    scale: float
    negative: Condition | None = None
    interval: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            raise ValueError(f"The guidance scale must be a finite number, got {self.scale!r}; 1 means no guidance.")
        low, high = self.interval
        if not low < high:
            raise ValueError(f"The guidance interval {self.interval} is empty: give (lowest, highest) log-SNR.")

    @property
    def path(self) -> Path:
        return self.denoiser.path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        scale = self._scale_at(level)
        if not isinstance(scale, Tensor) and scale == 1:
            return self.denoiser(x, level, condition, context.fork("cond"))
        if not isinstance(scale, Tensor) and scale == 0:
            null = context.memo("cfg null", (condition, self.negative), lambda: self._null(condition, x.shape[0]))
            return self.denoiser(x, level, null, context.fork("null"))
        both = context.memo("cfg both", (condition, self.negative), lambda: self._both(condition, x.shape[0]))
        levels = NoiseLevel(*(_twice(v) for v in (level.t, level.alpha, level.sigma)))
        prediction = self.denoiser(torch.cat([x, x]), levels, both, context.fork("cond", "null"))
        cond, null = prediction.raw.chunk(2)
        raw = null + expand(scale, x) * (cond - null)
        a, b = (v[: len(x)] if isinstance(v, Tensor) and v.ndim else v for v in prediction.row)
        variance = None if prediction.variance is None else prediction.variance.chunk(2)[0]
        return Prediction(x, level, raw, (a, b), variance)

    def _scale_at(self, level: NoiseLevel) -> Scalar:
        low, high = self.interval
        logsnr = level.logsnr
        if isinstance(logsnr, Tensor) and (low, high) != (-math.inf, math.inf):
            return torch.where((logsnr >= low) & (logsnr <= high), self.scale, 1.0)
        return self.scale if isinstance(logsnr, Tensor) or low <= logsnr <= high else 1.0

    def _both(self, condition: Condition, batch: int) -> Condition:
        null = self._null(condition, batch)
        if (condition.mask is None) != (null.mask is None):  # a missing mask means that every token is real
            condition, null = _with_mask(condition), _with_mask(null)
        return condition.cat([null])

    def _null(self, condition: Condition, batch: int) -> Condition:
        if self.negative is None:
            return condition.null()
        return self.negative.map(lambda v: v.expand(batch, *v.shape[1:]) if v.shape[0] == 1 else v)


def _with_mask(condition: Condition) -> Condition:
    if condition.tokens is None or condition.mask is not None:
        return condition
    return replace(condition, mask=condition.tokens.new_ones(condition.tokens.shape[:2], dtype=torch.bool))


def _twice(value: Scalar) -> Scalar:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value
