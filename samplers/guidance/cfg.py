"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context
from samplers.guidance.two_branch import TwoBranch, as_guided, both_branches, lerp, one_branch, scale_at
from samplers.path import NoiseLevel, Scalar
from samplers.prediction import Prediction


@dataclass(frozen=True)
class ClassifierFree(TwoBranch):
    """raw = raw_null + scale (raw_cond - raw_null): scale 1 is the plain conditional model, more follows the condition more.

    Both branches run as one batch of 2B, conditional half first. Where they are not needed they do not run: scale 1, or a
    level outside `interval`, evaluates only the condition; scale 0 only the null. `negative` and `interval` as in `TwoBranch`.
    channels: guide only the first so many channels of raw and take the others from the condition (DiT's published samples
    guide 3 of 4); None guides all. keep_both evaluates both branches at scale 0 and 1 too, for rules that read them (CFG++).
    A learned variance is the conditional branch's.

    Source: arXiv 2207.12598, equation 6, with scale = 1 + w.
    """

    channels: int | None = None
    keep_both: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and (isinstance(self.channels, bool) or self.channels < 1):
            raise ValueError(f"Guidance got channels={self.channels!r}; give how many to guide, at least 1, or None for all.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.channels is not None and self.channels > x.shape[1]:
            raise ValueError(f"Guidance got channels={self.channels}, but images here have {x.shape[1]}; give at most that.")
        scale = scale_at(self.scale, self.interval, level)
        if isinstance(scale, Tensor) or self._needs_both(scale, level):
            cond, null = both_branches(self.denoiser, x, level, condition, self.negative, context)
            return self.combine(cond, null, scale, context)
        if scale == 1:
            return self.conditional(x, level, condition, context)
        null = one_branch(self.denoiser, x, level, condition, self.negative, context)
        return as_guided(null, null.raw, None, null)

    def combine(self, cond: Prediction, null: Prediction, scale: Scalar, context: Context) -> Prediction:
        raw = lerp(null.raw, cond.raw, scale)  # equation 6 with scale = 1 + w (arXiv 2207.12598)
        if self.channels is not None:
            raw = torch.cat([raw[:, : self.channels], cond.raw[:, self.channels :]], dim=1)
        return as_guided(cond, raw, cond, null)

    def _needs_both(self, scale: float, level: NoiseLevel) -> bool:
        low, high = self.interval
        if self.keep_both and (isinstance(level.logsnr, Tensor) or low <= level.logsnr <= high):
            return True
        return scale not in (0, 1) or (scale == 0 and self.channels is not None)
