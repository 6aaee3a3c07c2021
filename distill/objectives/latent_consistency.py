"""Latent consistency models: a consistency model of the guided teacher that receives the guidance scale; and LCM-LoRA.

f(x, t) = c_skip(t) x + c_out(t) x0(x, t) is regressed onto itself, averaged, at the point where one guided DDIM step of the
teacher over `skip` timesteps leads. c_skip is 1 at clean data and negligible at the levels that a few steps sample at (3e-8 at
timestep 250 of 1000), so the exported model needs no boundary scaling: any sampler may call its network.

Source: arXiv 2310.04378, Algorithm 1 and equation 9; LoRA: arXiv 2311.05556. Their guidance w is our guidance_scale - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.distances import Weight
from distill.losses.levels import draw_start_index
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.objectives.bases.teacher import Scale
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import NoiseLevel, VariancePreserving, expand
from samplers.prediction import Prediction


class LatentConsistencyConfig(RegressionConfig):
    """teacher.steps: 1000 / k for a skipping step of k of 1000 timesteps. With a LoRA the scale is no input, and the target is
    the student itself (target_ema: null), as published. timestep_scaling, sigma_data: of c_skip and c_out. noisiest_share: of
    the samples that start at the noisiest level, for a student that is to draw in one step."""

    distance: Literal["l2", "pseudo_huber", "huber", "perceptual"] = "huber"
    weight: Weight = "uniform"
    target_ema: float | None = Field(default=0.95, ge=0, lt=1)
    timestep_scaling: float = Field(default=10.0, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)
    noisiest_share: float = Field(default=0.0, ge=0, le=1)


class LatentConsistencyObjective(RegressionObjective):
    """See the module."""

    config: LatentConsistencyConfig
    sampler = "lcm"
    source: ClassVar[str] = "arXiv 2310.04378"

    def boundary(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out) (B,). The timestep is a table's 0-based one, or the clock cut into 1000; clean data is timestep 0."""
        if isinstance(self.path, VariancePreserving):
            timestep = (len(self.path.table) * level.t - 1).clamp(min=0)
        else:
            timestep = 1000 * level.t / self.path.t_noise
        u, sigma_data = self.config.timestep_scaling * timestep, self.config.sigma_data
        # c_skip and c_out of arXiv 2310.04378, section 4.1, of the scaled timestep u
        total = u**2 + sigma_data**2
        return sigma_data**2 / total, u / total.sqrt()

    def consistent(self, prediction: Prediction) -> Tensor:
        """f of a prediction: c_skip x + c_out x0, and x itself where c_out is 0, whatever the network says there."""
        c_skip, c_out = (expand(c, prediction.x) for c in self.boundary(prediction.level))
        return torch.where(c_out == 0, prediction.x, c_skip * prediction.x + c_out * prediction.x0)

    def start(self, draws: Draws, device: torch.device) -> Tensor:
        """(B,) int64: the number of the level to which the teacher's step leads; it starts one level above."""
        return draw_start_index(draws, self.teacher_levels.steps, self.config.noisiest_share, device)

    def noised(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Condition, Scale]:
        """(z (B, C, h, w) where each sample starts, the number of the level below, the condition, the guidance scale)."""
        x0 = self.clean(batch)
        device = x0.device
        i = self.start(draws, device)
        z = self.teacher_levels.to(device)[i + 1].mix(x0, draws.normal_like("eps", x0))
        return z, i, self.condition(batch, device, draws), self.scale(draws, device)

    def consistency(
        self, models: Mapping[str, nn.Module], z_t: Tensor, i: Tensor, condition: Condition, scale: Scale
    ) -> tuple[Prediction, Tensor, dict[str, Tensor]]:
        """(the student's prediction at z_t, its loss, what to log)."""
        ladder = self.teacher_levels.to(z_t.device)
        t, s = ladder[i + 1], ladder[i]
        # arXiv 2310.04378, Algorithm 1: one guided DDIM step of the teacher, then d(f(z_t, w, c, t), f^-(z_s, w, c, s))
        z_s = self.teacher_step(models, z_t, t, s, condition, scale)
        target = self.consistent(self.target_predict(models, z_s, s, condition, scale))
        prediction = self.predict(models["student"], z_t, t, condition, scale)
        return prediction, *self.error(self.consistent(prediction), target, t)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        _, total, logged = self.consistency(models, *self.noised(batch, draws))
        return total, logged
