"""Adaptive projected guidance: strong guidance without oversaturation."""

from __future__ import annotations

import math
from dataclasses import dataclass

from samplers.denoiser import Context
from samplers.guidance.two_branch import TwoBranch, as_guided, at_least_float32, inner_product, read_x0
from samplers.path import Scalar, expand
from samplers.prediction import Prediction
from samplers.step_cache import network_id, recall, remember


@dataclass(frozen=True)
class AdaptiveProjected(TwoBranch):
    """x0 = x0_cond + (scale - 1) (d_orthogonal + eta d_parallel), with d = x0_cond - x0_null split along x0_cond.

    Before the split d goes through two filters: momentum, d <- d + momentum * (the d of the step before, itself filtered so),
    usually negative, and a cap of `threshold` on its norm over all but the batch. eta = 1 without filters is classifier-free
    guidance; eta = 0 removes the part that saturates. A non-linear rule: it acts on x0. (diffusers projects the network's own
    output; the two agree for models that predict x0.) What momentum remembers belongs to the run, branch and step.

    Source: arXiv 2410.02416, Algorithm 1; momentum -0.5, threshold 15, eta 0 are its SDXL settings.
    """

    eta: float = 0.0
    threshold: float = math.inf
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.eta):
            raise ValueError(f"APG got eta={self.eta}; give a finite number, usually 0 to 1.")
        if not self.threshold > 0:
            raise ValueError(f"APG got threshold={self.threshold}; give a norm above 0, or infinity for no cap.")
        if not -1 < self.momentum < 1:
            raise ValueError(f"APG got momentum={self.momentum}; give a number between -1 and 1, usually -0.5; 0 is off.")

    def combine(self, cond: Prediction, null: Prediction, scale: Scalar, context: Context) -> Prediction:
        x0 = at_least_float32(read_x0(cond))
        d = x0 - at_least_float32(read_x0(null))
        if self.momentum:
            name = ("apg", network_id(self.denoiser))
            past = recall(context, name)
            if past and past[-1][1].shape == d.shape:
                d = d + self.momentum * past[-1][1]  # Algorithm 1 (arXiv 2410.02416): momentum
            remember(context, name, d)
        if self.threshold < math.inf:
            d = d * (self.threshold / inner_product(d, d).sqrt()).clamp(max=1)  # its cap on the norm
        along = x0 * (inner_product(d, x0) / inner_product(x0, x0).clamp(min=1e-12))  # its projection on the conditional image
        update = (d - along) + self.eta * along
        result = (x0 + expand(scale - 1, x0) * update).to(cond.x.dtype)  # its guided image
        base = cond.with_x0(result)
        return as_guided(base, result, cond, null)
