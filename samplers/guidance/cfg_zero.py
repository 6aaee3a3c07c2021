"""CFG-Zero*: guidance for flow models whose velocity is still imperfect."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context
from samplers.guidance.two_branch import TwoBranch, at_least_float32, inner_product, lerp
from samplers.path import NoiseLevel, Scalar, expand
from samplers.prediction import Guided, Prediction


@dataclass(frozen=True)
class CFGZeroStar(TwoBranch):
    """v = s v_null + scale (v_cond - s v_null), with s = <v_cond, v_null> / |v_null|^2 per sample; and v = 0 at the start.

    It acts on the velocity dx/dt of the path, as published. optimised=False fixes s = 1, which is classifier-free guidance.
    Levels of logsnr up to `zero_until` get v = 0, a step that goes nowhere and costs no evaluation: -inf, the default, zeroes
    a start from pure noise (the published first step), None nothing.

    Source: arXiv 2503.18886, Algorithm 1.
    """

    optimised: bool = True
    zero_until: float | None = -math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_until is not None and not self.zero_until < math.inf:
            raise ValueError(f"CFG-Zero* got zero_until={self.zero_until}; give a log-SNR, or None to zero nothing.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.zero_until is None:
            return super().__call__(x, level, condition, context)
        zeroed = level.logsnr <= self.zero_until
        if not isinstance(zeroed, Tensor):
            if zeroed:
                return Guided(x, level, torch.zeros_like(x), self.path.rate(level))
            return super().__call__(x, level, condition, context)
        prediction = super().__call__(x, level, condition, context)
        row = self.path.rate(level)
        flow = torch.where(expand(zeroed, x).bool(), torch.zeros_like(x), prediction.read(row))
        return replace(prediction, raw=flow, row=row)

    def combine(self, cond: Prediction, null: Prediction, scale: Scalar, context: Context) -> Prediction:
        row = self.path.rate(cond.level)
        v_cond, v_null = at_least_float32(cond.read(row)), at_least_float32(null.read(row))
        if self.optimised:
            # Algorithm 1 (arXiv 2503.18886): s*
            v_null = v_null * (inner_product(v_cond, v_null) / inner_product(v_null, v_null).clamp(min=1e-12))
        v = lerp(v_null, v_cond, scale).to(cond.x.dtype)  # its guided velocity
        return Guided(cond.x, cond.level, v, row, cond.variance, cond, null)
