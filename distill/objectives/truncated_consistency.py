"""Truncated consistency models (TCM): a second stage, which leaves the little noise to the first and learns the rest.

A consistency model of the first stage has spent much of itself on denoising at small levels, which drawing in one or two steps
never asks for. It stays frozen and answers below the transition t'; the student, which starts as it, answers above, where alone
it is trained. So that the student cannot collapse to a constant, a share of the samples lies at t' itself, whose earlier point
the first stage answers for. The teacher's folder is the first stage's export.

Source: arXiv 2410.14895, section 3; its repository NVlabs/TCM for the distribution of levels and the gap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.consistency_schedules import tuned_ratio
from distill.objectives.bases.teacher import Scale
from distill.objectives.consistency_distillation import ConsistencyConfig, DiscreteConsistency
from distill.types import Batch, Draws, Phase
from gen.models.folder import Option
from samplers.denoiser import Condition
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, expand


class TruncatedConsistencyConfig(ConsistencyConfig):
    """transition: t', as sigma / alpha. boundary_share: of the samples that lie at it; boundary_weight: of their mean error.

    mean, std, df: of log(sigma / alpha) above t', Student's t distribution of df degrees of freedom cut off at both ends; df
    null is the normal one. gap, k, b: the earlier point is at t (1 - gap (1 + k sigmoid(-b t))). The schedule that the student
    is sampled with must not go below t' before clean data.
    """

    transition: float = Field(default=1.0, gt=0)
    boundary_share: float = Field(default=0.25, gt=0, lt=1)
    boundary_weight: float = Field(default=0.1, gt=0)
    mean: float = 0.0
    std: float = Field(default=0.2, gt=0)
    df: float | None = Field(default=0.01, gt=0)
    gap: float = Field(default=1e-3, gt=0, lt=0.1)
    k: float = Field(default=8.0, ge=0)
    b: float = Field(default=1.0, gt=0)
    weighting: Literal["uniform", "inverse_step"] = "inverse_step"
    target_ema: None = None
    steps: int = Field(default=2, gt=0)
    schedule_options: dict[str, Option] = Field(default={"sigma_min": 1.0, "sigma_max": 80.0})

    @model_validator(mode="after")
    def _above(self) -> TruncatedConsistencyConfig:
        if not self.sigma_min < self.transition < self.sigma_max:
            raise ValueError(
                f"transition {self.transition} must be between sigma_min {self.sigma_min} and sigma_max {self.sigma_max}"
            )
        return self


class TruncatedConsistencyObjective(DiscreteConsistency):
    """See the module. Role `teacher` is the first stage."""

    source = "arXiv 2410.14895"
    config: TruncatedConsistencyConfig

    def __init__(self, config: TruncatedConsistencyConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        lowest = float(self.levels.sigma[1] / self.levels.alpha[1])
        if lowest < config.transition * (1 - 1e-6):
            raise ValueError(
                f"The student would be sampled at sigma / alpha = {lowest:.4g}, but below the transition {config.transition:g} "
                "it is not trained: raise schedule_options.sigma_min to it, or take fewer steps."
            )
        self.table = truncated_quantiles(config)

    def at_boundary(self, draws: Draws, device: torch.device) -> Tensor:
        """(B,) bool: the samples that lie at the transition."""
        return draws.uniform("boundary", device=device) < self.config.boundary_share

    def pair(self, draws: Draws, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        config, table = self.config, self.table.to(device)
        place = draws.uniform("level", device=device).double() * (len(table) - 1)
        below = place.long().clamp(max=len(table) - 2)
        high = torch.lerp(table[below], table[below + 1], place - below).exp()
        high = torch.where(self.at_boundary(draws, device), config.transition, high)
        return high, tuned_ratio(high, 1, config.k, config.b, 1 / config.gap)

    def truncated(
        self, models: Mapping[str, nn.Module], x: Tensor, ratio: Tensor, level: NoiseLevel, condition: Condition, scale: Scale
    ) -> Tensor:
        """The consistency function by whom it falls to: the first stage below the transition, the student from there on. Both
        are asked, as processes must call networks equally often. Without gradients."""
        mine = self.function(self.target_predict(models, x, level, condition, scale))
        first = self.function(self.target_predict(models, x, level, condition, scale, role="teacher"))
        return torch.where(expand(ratio < self.config.transition, x).bool(), first, mine)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, x0 = self.config, self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        high, low = self.pair(draws, x0.device, step)
        t, s, eps = at_ratio(self.path, high), at_ratio(self.path, low), draws.normal_like("eps", x0)
        x_t = t.mix(x0, eps)
        student_output = self.function(self.predict(models["student"], x_t, t, condition, scale))
        with torch.no_grad():
            target = self.truncated(
                models, self.earlier(models, x0, eps, x_t, t, s, condition, scale), low, s, condition, scale
            )
        error = self.distance(student_output, target)
        if config.weighting == "inverse_step":
            error = error / (high - low).to(error)
        # the truncated loss and the boundary's: means over both kinds of samples, of which a batch holds as many as it may
        boundary = self.at_boundary(draws, x0.device)
        weight = torch.where(boundary, config.boundary_weight / config.boundary_share, 1 / (1 - config.boundary_share))
        return (weight.to(error) * error).mean(), {"error": error.detach().mean()}


def truncated_quantiles(config: TruncatedConsistencyConfig, count: int = 2049) -> Tensor:
    """(count,) log ratios between transition and sigma_max, as many of the distribution below each as it says."""
    ends = torch.tensor([config.transition, config.sigma_max], dtype=torch.float64).log()
    place = torch.linspace(0, 1, 16 * count, dtype=torch.float64)
    logs = torch.lerp(ends[0], ends[1], place)
    square = ((logs - config.mean) / config.std) ** 2
    log_density = -square / 2 if config.df is None else -(config.df + 1) / 2 * torch.log1p(square / config.df)
    density = (log_density - log_density.max()).exp()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), ((density[1:] + density[:-1]) / 2).cumsum(0)])
    wanted = torch.linspace(0, 1, count, dtype=torch.float64) * below[-1]
    index = torch.searchsorted(below, wanted).clamp(1, len(logs) - 1)
    share = (wanted - below[index - 1]) / (below[index] - below[index - 1]).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.lerp(logs[index - 1], logs[index], share.clamp(0, 1))
