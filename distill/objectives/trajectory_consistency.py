"""Trajectory consistency: from a level to any cleaner one, not to the data alone.

The student's DDIM step from t to a random end e is drawn to the one from s to e, with s one guided step of the teacher below t.
Sampled with `tcd`, which goes past the next level and adds noise up to it.

Source: arXiv 2402.19159, section 4.1 (with their first-order parametrisation); limiting how far e lies below t and starting
below pure noise are of single trajectory distillation, arXiv 2412.18945. The paper's guidance w is our guidance_scale - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.distances import Weight
from distill.losses.levels import draw_index
from distill.losses.solver_steps import ddim
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.types import Batch, Draws, Phase


class TrajectoryConsistencyConfig(RegressionConfig):
    """reach: e lies at most this share of the teacher's levels below t. start_at: t is drawn from the cleanest share of the
    levels; below 1 for a student that only ever edits pictures that are partly noise. eta: of the sampler."""

    distance: Literal["l2", "pseudo_huber", "huber", "perceptual"] = "huber"
    weight: Weight = "uniform"
    target_ema: float | None = Field(default=0.95, ge=0, lt=1)
    reach: float = Field(default=1.0, gt=0, le=1)
    start_at: float = Field(default=1.0, gt=0, le=1)
    eta: float = Field(default=0.3, ge=0, le=1)


class TrajectoryConsistencyObjective(RegressionObjective):
    """See the module."""

    config: TrajectoryConsistencyConfig
    sampler = "tcd"
    source: ClassVar[str] = "arXiv 2402.19159"

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.sampler_options = {"eta": config.eta}

    def indices(self, draws: Draws, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """(the number of level s, which is one below t's; the number of level e, at most s's), both (B,)."""
        i = draw_index(draws, "step", max(round(self.config.start_at * count), 1), device)
        lowest = (i + 1 - max(round(self.config.reach * count), 1)).clamp(min=0)
        share = draws.uniform("end", device=device).double()
        return i, torch.minimum(lowest + (share * (i + 1 - lowest)).long(), i)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        device, ladder = x0.device, self.teacher_levels.to(x0.device)
        condition, scale = self.condition(batch, device, draws), self.scale(draws, device)
        i, end = self.indices(draws, ladder.steps, device)
        t, s, e = ladder[i + 1], ladder[i], ladder[end]
        z_t = t.mix(x0, draws.normal_like("eps", x0))
        z_s = self.teacher_step(models, z_t, t, s, condition, scale)
        # arXiv 2402.19159, section 4.1: both ends of the trajectory function, f(z_t, t -> e) and f^-(z_s, s -> e)
        target = self.onward(models, z_s, i, end, ladder, condition, scale)
        mine = ddim(self.predict(models["student"], z_t, t, condition, scale).x0, z_t, t, e)
        return self.error(mine, target, t)
