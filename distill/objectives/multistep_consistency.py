"""Multistep consistency models: consistency within each of a few segments of the path, sampled with plain DDIM.

One segment is a consistency model, as many as the teacher has steps a diffusion model. In distillation the next point on the
trajectory is made by aDDIM, whose noise makes up for the spread of clean images that the teacher's mean leaves out; in
training by the data.

Source: arXiv 2403.06807, Algorithm 1 and section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.distances import Weight
from distill.losses.levels import draw_index
from distill.losses.solver_steps import adjusted_ddim, ddim, inverse_ddim
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.types import Batch, Draws, Phase
from samplers.path import NoiseLevel, expand


class MultistepConsistencyConfig(RegressionConfig):
    """form: distillation of the teacher, or training on data (the teacher is then only where the student starts). substeps: the
    teacher's steps over the whole path, growing exponentially from the first to the second number over `anneal` training steps.
    variance_scale: eta, the share of the spread that aDDIM makes up for; 0 is DDIM."""

    form: Literal["distillation", "training"] = "distillation"
    substeps: tuple[int, int] = (64, 1280)
    anneal: int = Field(default=100_000, gt=0)
    variance_scale: float = Field(default=0.75, ge=0)
    distance: Literal["l2", "pseudo_huber", "huber", "perceptual"] = "pseudo_huber"
    huber_c: float = Field(default=1e-4, gt=0)
    weight: Weight = "snr_plus_one"


class MultistepConsistencyObjective(RegressionObjective):
    """See the module."""

    config: MultistepConsistencyConfig
    source: ClassVar[str] = "arXiv 2403.06807"

    def substeps(self, step: int) -> int:
        """N, the substeps of each segment at a training step."""
        first, last = (math.log(count) for count in self.config.substeps)
        total = math.exp(first + min(step / self.config.anneal, 1.0) * (last - first))
        return max(round(total / self.config.steps), 1)

    def endpoint(
        self, models: Mapping[str, nn.Module], x0: Tensor, z_t: Tensor, t: NoiseLevel, condition, scale
    ) -> tuple[Tensor, Tensor]:
        """(x_T, what aDDIM takes for the variance of x0 given z_t, (B,))."""
        if self.config.form == "training":
            return x0, torch.zeros(len(x0), dtype=x0.dtype, device=x0.device)
        guided = self.teacher_predict(models, z_t, t, condition, scale)
        plain = guided.cond if guided.cond is not None else guided  # the spread is that of the model without guidance
        return guided.x0, self.config.variance_scale * (plain.x0 - x0).square().flatten(1).mean(1)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0, count = self.clean(batch), self.substeps(step)
        device, levels = x0.device, self.levels.to(x0.device)
        condition, scale = self.condition(batch, device, draws), self.scale(draws, device)
        segment = draw_index(draws, "segment", levels.steps, device)
        n = 1 + draw_index(draws, "substep", count, device)
        start = levels[segment]
        t, s = (levels.between(self.path, segment, (n - k).double() / count) for k in (0, 1))
        z_t = t.mix(x0, draws.normal_like("eps", x0))

        x_teacher, variance = self.endpoint(models, x0, z_t, t, condition, scale)
        variance = torch.where(s.sigma == 0, 0.0, variance.double())  # a step to clean data may not add noise
        z_s = adjusted_ddim(x_teacher, z_t, t, s, variance)
        at_start = expand((n == 1).to(x0), x0) != 0
        target_level = NoiseLevel(*(torch.where(n == 1, a, b) for a, b in zip(*map(_scalars, (t, s)), strict=True)))
        z_ref = torch.where(
            at_start, z_s, ddim(self.target_predict(models, z_s, target_level, condition, scale).x0, z_s, target_level, start)
        )
        # arXiv 2403.06807, Algorithm 1: x_hat_ref, from which DDIM leads to z_ref at the start of the segment
        target = inverse_ddim(z_ref, z_t, t, start)
        value, logged = self.error(self.predict(models["student"], z_t, t, condition, scale).x0, target, t)
        return value, {**logged, "substeps": torch.tensor(float(count))}


def _scalars(level: NoiseLevel) -> tuple[Tensor, Tensor, Tensor]:
    return level.t, level.alpha, level.sigma
