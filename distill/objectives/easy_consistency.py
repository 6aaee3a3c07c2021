"""Easy consistency tuning (ECT, arXiv 2406.14548): a diffusion model turned into a consistency model by degrees.

Levels are continuous. In stage 0 the earlier point is clean data, which is the loss of diffusion; every stage brings the two
points closer together, until the student says the same all along a trajectory.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.losses.consistency_schedules import tuned_ratio
from distill.objectives.consistency_distillation import ConsistencyConfig, DiscreteConsistency
from distill.types import Draws


class EasyConsistencyConfig(ConsistencyConfig):
    """stage_steps: steps of a stage. k, b, q: of the mapping from t to r, `distill.losses.consistency_schedules.tuned_ratio`;
    mean, std: of log(sigma / alpha). The student is its own target."""

    stage_steps: int = Field(gt=0)
    k: float = Field(default=8.0, ge=0)
    b: float = Field(default=1.0, gt=0)
    q: float = Field(default=2.0, gt=1)
    mean: float = -1.1
    std: float = Field(default=2.0, gt=0)
    weighting: Literal["uniform", "inverse_step"] = "inverse_step"
    target_ema: None = None


class EasyConsistencyObjective(DiscreteConsistency):
    source = "arXiv 2406.14548"
    config: EasyConsistencyConfig

    def pair(self, draws: Draws, device: torch.device, step: int) -> tuple[Tensor, Tensor]:
        config = self.config
        high = (config.mean + config.std * draws.normal("level", device=device).double()).exp()
        high = high.clamp(config.sigma_min, config.sigma_max)
        # arXiv 2406.14548, section 3.2: r of t, by the stage
        low = tuned_ratio(high, step // config.stage_steps, config.k, config.b, config.q)
        # below sigma_min a picture counts as clean
        return high, torch.where(low < config.sigma_min, 0.0, low)
