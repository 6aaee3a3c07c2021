"""Improved consistency training (arXiv 2310.14189): consistency training as it works.

Against consistency training: the target is the student itself, not an average; the pseudo-Huber distance; levels drawn from a
discretised log-normal; a number of levels that doubles; errors weighed by 1 / (t - s).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from distill.losses.consistency_schedules import doubling_count, log_normal_shares, pick, ratios
from distill.objectives.consistency_distillation import ConsistencyConfig, DiscreteConsistency
from distill.types import Draws


class ImprovedConsistencyConfig(ConsistencyConfig):
    """total_steps: K of the schedule, the steps of the run, over which the number of levels doubles from first_levels up to
    last_levels. mean, std: of log(sigma / alpha)."""

    total_steps: int = Field(gt=0)
    first_levels: int = Field(default=10, ge=1)
    last_levels: int = Field(default=1280, ge=1)
    mean: float = -1.1
    std: float = Field(default=2.0, gt=0)
    weighting: Literal["uniform", "inverse_step"] = "inverse_step"
    target_ema: None = None

    @model_validator(mode="after")
    def _grows(self) -> ImprovedConsistencyConfig:
        if self.last_levels < self.first_levels:
            raise ValueError(f"last_levels {self.last_levels} must be at least first_levels {self.first_levels}")
        return self


class ImprovedConsistencyObjective(DiscreteConsistency):
    source = "arXiv 2310.14189"
    config: ImprovedConsistencyConfig

    def pair(self, draws: Draws, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        config = self.config
        # arXiv 2310.14189: N(k) of section 3.4, pairs drawn as section 3.5 says
        count = doubling_count(step, config.total_steps, config.first_levels, config.last_levels)
        grid = ratios(count, config.sigma_min, config.sigma_max, config.rho).to(device)
        index = pick(log_normal_shares(grid, config.mean, config.std), draws.uniform("level", device=device))
        return grid[index + 1], grid[index]
