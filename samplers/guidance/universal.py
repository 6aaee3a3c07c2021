"""Universal guidance: an energy's gradient through the denoiser, after a descent on the clean image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.energy import (
    Energy,
    check_branch,
    check_count,
    check_numbers,
    detach_prediction,
    gradients,
    limit_rms,
    log_density,
    predict_with_gradient,
    x0_with_gradient,
)
from samplers.guidance.two_branch import read_x0
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Universal(DenoiserWrapper):
    """z = D(x), then `iterations` times z += backward grad log f(z), and with the gradient through the denoiser

        x0 = z + scale (sigma^2 / alpha) grad_x log f(D(x)).

    For scale 1 and no iterations it is Bayes' rule with p(y | x_t) taken as f(D(x)): DPS as a score, which, unlike TFG's
    strengths, does not depend on the steps of the run. With more than one iteration it is not a special case of TFG.

    scale 0 runs no gradient through the denoiser; both 0, or a log-SNR outside `interval`, is the denoiser itself. At pure
    noise, of which D is no function, scale adds nothing. checkpoint, limit and branch as in `TFG`. Around the
    solver, `Recurrent` is the paper's self-recurrence.

    Source: arXiv 2302.07121, Algorithm 1: its forward guidance and its backward guidance by gradient descent, on any path.
    """

    denoiser: Denoiser
    energy: Energy
    scale: float = 1.0
    backward: float = 1.0
    iterations: int = 0
    interval: Interval = EVERYWHERE
    limit: float | None = None
    checkpoint: bool = False
    branch: str = "cond"

    def __post_init__(self) -> None:
        check_branch("Universal guidance", self.branch)
        check_numbers("Universal guidance", scale=self.scale, backward=self.backward)
        check_count("Universal guidance", 0, iterations=self.iterations)
        check_interval(self.interval)
        if self.limit is not None:
            check_numbers("Universal guidance", limit=self.limit)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        through = self.scale > 0 and level.alpha > 0
        descends = self.iterations > 0 and self.backward > 0
        if not (through or descends) or not contains(self.interval, level):
            return self.denoiser(x, level, condition, context)
        if through:
            prediction = predict_with_gradient(self.denoiser, x, level, condition, context, self.checkpoint)
            with torch.enable_grad():
                x0 = x0_with_gradient(prediction, self.branch)
                value = log_density(self.energy, x0, condition)
            (slope,) = gradients(value, (prediction.x,), self.energy)
            move = self.scale * level.sigma**2 / level.alpha * slope  # Algorithm 1 (arXiv 2302.07121): forward guidance
        else:
            with torch.no_grad():
                prediction = self.denoiser(x, level, condition, context)
            x0 = read_x0(prediction)
            move = torch.zeros_like(x0)
        x0 = x0.detach()
        z = x0
        for _ in range(self.iterations if descends else 0):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                (slope,) = gradients(log_density(self.energy, leaf, condition), (leaf,), self.energy)
            z = z + self.backward * slope  # its backward guidance
        return detach_prediction(prediction, x).with_x0(x0 + limit_rms(z - x0 + move, self.limit))
