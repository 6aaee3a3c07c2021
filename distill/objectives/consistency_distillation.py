"""Consistency distillation (arXiv 2303.01469, Algorithm 2), and what all discrete-time consistency methods share.

A consistency function maps every point of a trajectory of the probability-flow ODE to its clean end. It is trained to say the
same at two neighbouring points of one trajectory: x_t, and x_s made from it by a step of the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.consistency_schedules import Boundary, check_reach, ratios
from distill.losses.levels import draw_index
from distill.objectives.bases.perceptual import PerceptualConfig, PerceptualObjective
from distill.objectives.bases.teacher import Scale, TeacherConfig
from distill.types import Batch, Draws, Phase
from gen.models.folder import Option
from samplers.denoiser import Condition
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction


class ConsistencyConfig(PerceptualConfig):
    """sigma_min, sigma_max: the noise ratios (sigma / alpha) of clean and of pure noise, rho the grid's exponent between them.

    boundary_width: `distill.losses.consistency_schedules.Boundary`. distance: squared (mean over pixels), absolute,
    pseudo_huber with c = huber sqrt(d) for images of d numbers, or perceptual (`distill.objectives.bases.perceptual`, which any
    may have beside it). weighting: inverse_step is 1 / (t - s)."""

    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)
    boundary_width: float = Field(default=0.05, gt=0)
    distance: Literal["squared", "absolute", "pseudo_huber", "perceptual"] = "pseudo_huber"
    huber: float = Field(default=0.00054, gt=0)
    weighting: Literal["uniform", "inverse_step"] = "uniform"
    schedule: str = "karras"
    schedule_options: dict[str, Option] = Field(default={"sigma_min": 0.5, "sigma_max": 80.0})

    @model_validator(mode="after")
    def _ordered(self) -> ConsistencyConfig:
        if not self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        return self


class ConsistencyDistillationConfig(ConsistencyConfig):
    """levels: N, how many noise ratios the trajectory is cut into."""

    teacher: TeacherConfig = TeacherConfig(solver="heun")
    target_ema: float | None = Field(default=0.95, ge=0, lt=1)
    levels: int = Field(default=18, ge=2)


class DiscreteConsistency(PerceptualObjective):
    """Subclasses give the pair of ratios, `pair`, and where the earlier point comes from, `earlier`."""

    sampler = "consistency"
    config: ConsistencyConfig

    def __init__(self, config: ConsistencyConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        check_reach(self.path, config.sigma_max)
        self.sampler_options = {"sigma_min": config.sigma_min}
        self.boundary = Boundary(config.sigma_min, self.model.sigma_data, config.boundary_width)

    def pair(self, draws: Draws, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        """(t, s): noise ratios t > s, (B,) float64; s = 0 is clean data."""
        raise NotImplementedError

    def earlier(
        self,
        models: Mapping[str, nn.Module],
        x0: Tensor,
        eps: Tensor,
        x_t: Tensor,
        t: NoiseLevel,
        s: NoiseLevel,
        condition: Condition,
        scale: Scale,
    ) -> Tensor:
        """x at s on the trajectory through x_t; without a teacher the same noise at the lower level."""
        return s.mix(x0, eps)

    def function(self, prediction: Prediction) -> Tensor:
        return self.boundary(prediction, self.model.prediction)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,)."""
        kind, distance = self.config.distance, None
        if kind == "pseudo_huber":
            distance = losses.pseudo_huber(a, b, self.config.huber * math.sqrt(a[0].numel()))
        elif kind != "perceptual":
            distance = losses.squared(a, b) if kind == "squared" else (a - b).abs().flatten(1).mean(1)
        return self.beside(distance, a, b)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        high, low = self.pair(draws, x0.device, step)
        t, s = at_ratio(self.path, high), at_ratio(self.path, low.clamp(min=self.config.sigma_min))
        eps = draws.normal_like("eps", x0)
        x_t = t.mix(x0, eps)
        student_output = self.function(self.predict(models["student"], x_t, t, condition, scale))
        with torch.no_grad():
            x_s = self.earlier(models, x0, eps, x_t, t, s, condition, scale)
            target = self.function(self.target_predict(models, x_s, s, condition, scale))
            target = torch.where(expand(low == 0, x0).bool(), x0, target)
        # arXiv 2303.01469, equation 7 with a teacher, equation 10 without: lambda(t_n) d(f(x_t, t), f^-(x_s, s))
        error = self.distance(student_output, target)
        weight = 1 / (high - low).to(error) if self.config.weighting == "inverse_step" else 1.0
        return (weight * error).mean(), {"error": error.detach().mean()}


class ConsistencyDistillationObjective(DiscreteConsistency):
    source = "arXiv 2303.01469"
    config: ConsistencyDistillationConfig

    def pair(self, draws: Draws, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        config = self.config
        grid = ratios(config.levels, config.sigma_min, config.sigma_max, config.rho).to(device)
        index = draw_index(draws, "level", config.levels - 1, device)
        return grid[index + 1], grid[index]

    def earlier(self, models, x0, eps, x_t, t, s, condition, scale) -> Tensor:
        return self.teacher_step(models, x_t, t, s, condition, scale)  # arXiv 2303.01469, equation 6
