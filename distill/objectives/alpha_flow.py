"""AlphaFlow (arXiv 2510.20771): from flow matching to MeanFlow by way of shortcuts, in one run.

The mean velocity u(x_t, r, t) of a step is split at s = t - alpha (t - r): the first part is a straight line along v, the
second is the student's own step from there:

    u(x_t, r, t) <- alpha v + (1 - alpha) u(x_t - (t - s) v, r, s)

alpha = 1 is flow matching on whole steps, alpha = 1/2 a shortcut model, and alpha -> 0 has the gradient of MeanFlow, whose
two terms hinder one another at the start. Training goes from 1 to 0.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field, model_validator
from torch import Tensor

from distill.objectives.bases.teacher import Scale
from distill.objectives.mean_flow import MeanFlowConfig, MeanFlowObjective
from distill.parallel.shards import unwrap
from samplers.denoiser import Condition
from samplers.path import expand


class AlphaFlowConfig(MeanFlowConfig):
    """MeanFlow's settings, and those of alpha.

    anneal: (first, last) step between which alpha falls from 1 to 0, along a sigmoid.
    temperature: of that sigmoid; larger is steeper.
    clamp: alpha nearer to 0 or 1 than this is 0 (MeanFlow) or 1.
    limit: targets between are kept within -limit and limit; None: as they are.
    """

    anneal: tuple[int, int] = (0, 1000)
    temperature: float = Field(default=25.0, gt=0)
    clamp: float = Field(default=5e-3, gt=0, lt=0.5)
    limit: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_anneal(self) -> AlphaFlowConfig:
        first, last = self.anneal
        if not 0 <= first < last:
            raise ValueError(f"anneal is [{first}, {last}]; give the step where alpha begins to fall, then a later one")
        return self


class AlphaFlowObjective(MeanFlowObjective):
    source = "arXiv 2510.20771"
    config: AlphaFlowConfig

    def alpha(self, step: int) -> float:
        """The share of a step that goes along v, in [0, 1]."""
        first, last = self.config.anneal
        position = min(max((step - first) / (last - first), 0.0), 1.0)
        alpha = 1 - 1 / (1 + math.exp(-self.config.temperature * (position - 0.5)))
        if alpha < self.config.clamp:
            return 0.0
        return 1.0 if alpha > 1 - self.config.clamp else alpha

    @torch.no_grad()
    def target(
        self, models, x: Tensor, v: Tensor, r: Tensor, t: Tensor, condition: Condition, scale: Scale, step: int
    ) -> Tensor:
        alpha = self.alpha(step)
        if alpha == 0:
            return super().target(models, x, v, r, t, condition, scale, step)
        if alpha == 1:
            return v
        first = alpha * (t - r)
        middle = x - expand(first, x) * v
        rest = self.mean_velocity(unwrap(models["student"]), middle, r, t - first, condition, scale)
        target = alpha * v + (1 - alpha) * rest
        if (limit := self.config.limit) is not None:
            target = target.clamp(-limit, limit)
        return torch.where(expand(t - r, x) > 0, target, v)

    def weight(self, error: Tensor, r: Tensor, t: Tensor, step: int) -> Tensor:
        """1/alpha, on an error that is alpha times MeanFlow's for small alpha, and the adaptive weight of that one."""
        plain = super().weight(error, r, t, step)
        alpha = self.alpha(step)
        return plain if alpha == 0 else torch.where(r < t, alpha ** (2 * self.config.power - 1) * plain, plain)
