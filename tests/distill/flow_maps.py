"""Networks that know the probability-flow ODE of Gaussian data in closed form, for tests of consistency methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.objectives.bases.teacher import Teacher
from samplers.denoiser import Context
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, expand
from tests.distill.students import FLOW, Exact, exact_teacher


def ode(oracle: Any, x: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """The exact ODE from s to t, a level per sample: (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) stays what it was."""

    def spread(level: NoiseLevel) -> Tensor:
        return (expand(level.alpha, x) ** 2 * oracle.std**2 + expand(level.sigma, x) ** 2).sqrt()

    start = expand(s.alpha, x) * oracle.mean
    return expand(t.alpha, x) * oracle.mean + spread(t) / spread(s) * (x - start)


class ExactEnd(Exact):
    """Says as x0 the point of the trajectory at noise ratio `end`, over alpha, undoing the boundary's blend of that width. With
    end = 0 it says the clean end itself."""

    def __init__(self, teacher: Teacher, end: float = 0.0, width: float = 0.0):
        super().__init__(teacher.model, teacher.network.oracle)
        self.end, self.width = end, width

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        level = self.level(time)
        if not self.end:
            return ode(self.oracle, x, level, self.path(torch.zeros_like(level.t))) + self.zero
        end = at_ratio(self.path, torch.full_like(level.t, self.end))
        wanted = ode(self.oracle, x, level, end) / expand(end.alpha, x)
        above = level.sigma / level.alpha - self.end
        keep = expand(self.width**2 / (above**2 + self.width**2), x)
        raw = (wanted - keep * x / expand(level.alpha, x)) / (1 - keep)
        return torch.where(keep > 1 - 1e-12, 0.0, raw) + self.zero


class ExactMap(Exact):
    """Says the x0 with which DDIM goes exactly to the target time: the mean velocity of the step, read as x0."""

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        t, r = self.level(time), self.level(condition.extra["target_time"])
        velocity = self.oracle(x, t, condition, Context()).flow(self.path)
        same = expand(t.t - r.t, x).abs() < 1e-9
        step = torch.where(same, 1.0, expand(t.t - r.t, x))
        mean = torch.where(same, velocity, (x - ode(self.oracle, x, t, r)) / step)
        return x - expand(t.sigma, x) * mean + self.zero


def gaussian_teacher() -> Teacher:
    return exact_teacher(FLOW, "x0", gaussian=True)
