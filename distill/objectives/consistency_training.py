"""Consistency training (arXiv 2303.01469, Algorithm 3): a consistency model without a teacher.

The earlier point is the same picture with the same noise at the lower level, which is a step of the ODE on average. The
teacher's folder only says what path, prediction and encoders the network has; with start: network it is not where it begins.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from distill.losses.consistency_schedules import growing_count, growing_decay, ratios
from distill.losses.levels import draw_index
from distill.objectives.bases.frozen_copies import ema_update
from distill.objectives.consistency_distillation import ConsistencyConfig, DiscreteConsistency
from distill.types import Draws


class ConsistencyTrainingConfig(ConsistencyConfig):
    """total_steps: K of the schedule, the steps of the run. The number of levels grows from first_levels to last_levels + 1;
    target_ema is the target's decay at first_levels levels, and nears 1 as they get denser."""

    total_steps: int = Field(gt=0)
    first_levels: int = Field(default=2, ge=2)
    last_levels: int = Field(default=150, ge=2)
    target_ema: float = Field(default=0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _grows(self) -> ConsistencyTrainingConfig:
        if self.last_levels < self.first_levels:
            raise ValueError(f"last_levels {self.last_levels} must be at least first_levels {self.first_levels}")
        return self


class ConsistencyTrainingObjective(DiscreteConsistency):
    source = "arXiv 2303.01469"
    config: ConsistencyTrainingConfig

    def count(self, step: int) -> int:
        """N: how many levels there are at a step."""
        config = self.config
        return growing_count(step, config.total_steps, config.first_levels, config.last_levels)

    def pair(self, draws: Draws, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        config, count = self.config, self.count(step)
        grid = ratios(count, config.sigma_min, config.sigma_max, config.rho).to(device)
        index = draw_index(draws, "level", count - 1, device)  # n of arXiv 2303.01469, Algorithm 3
        return grid[index + 1], grid[index]

    def after_step(self, step: int) -> None:
        # mu(k) of arXiv 2303.01469, appendix C
        decay = growing_decay(self.count(step), self.config.first_levels, self.config.target_ema)
        ema_update(self.roles["target"].network, self.roles["student"].network, decay)
