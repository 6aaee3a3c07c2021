"""Improved MeanFlow (arXiv 2512.02012): MeanFlow as a plain regression of the velocity, with guidance as an input.

MeanFlow differentiates u along the velocity v of one picture and its noise, so what is compared with v reads v: a target that
moves with the network, of high variance. Here the direction is the velocity that the network predicts, u(x_t, t, t), and

    V(x_t) = u(x_t, r, t) + (t - r) sg[du/dt]

is a function of x_t alone, regressed on v. With `embed_guidance` the network receives the guidance scale w, and learns

    v + (1 - 1/w) (u(x_t, t, t | c, w) - u(x_t, t, t | null, 1))

for all scales of `teacher.guidance_scale` in one run; samples without a condition are trained at w = 1, which is where their
prediction is read. The paper's auxiliary velocity head is left out in favour of its parameter-free form (section 4.1), and the
interval of guidance is fixed by `guided`, not an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.objectives.bases.teacher import Scale
from distill.objectives.mean_flow import MeanFlowConfig, MeanFlowObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import expand


class ImprovedMeanFlowConfig(MeanFlowConfig):
    """MeanFlow's settings but omega and kappa, which a guidance scale that the network receives replaces.

    scale_power: scales w are drawn with a density of w^-scale_power over the range of teacher.guidance_scale.
    """

    mode: Literal["training"] = "training"
    different: float = Field(default=0.5, ge=0, le=1)
    floor: float = Field(default=1e-2, gt=0)
    omega: float = Field(default=1.0, ge=1, le=1)
    kappa: float = Field(default=0.0, ge=0, le=0)
    scale_power: float = Field(default=1.0, ge=0)


class ImprovedMeanFlowObjective(MeanFlowObjective):
    source = "arXiv 2512.02012"
    config: ImprovedMeanFlowConfig

    def scale(self, draws: Draws, device: torch.device) -> Scale:
        """Guidance scales (B,) of a power law over the teacher's range, or its number."""
        scale, power = self.config.teacher.guidance_scale, self.config.scale_power
        if not isinstance(scale, tuple):
            return scale
        low, high = (max(bound, 1.0) for bound in scale)
        share = draws.uniform("guidance", device=device)
        if power == 1:
            return low * (high / low) ** share
        ends = low ** (1 - power), high ** (1 - power)
        return (ends[0] + (ends[1] - ends[0]) * share) ** (1 / (1 - power))

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, x0 = self.config, self.clean(batch)
        condition, null = self.dropped_condition(batch, draws, x0.device)
        r, t = self.times(draws, x0.device)
        low, high = config.guided
        scale = torch.as_tensor(self.scale(draws, x0.device), device=x0.device, dtype=torch.float32).expand(len(x0))
        scale = torch.where(null | (t < low) | (t > high), 1.0, scale)
        eps = draws.normal_like("eps", x0)
        x = self.path(t).mix(x0, eps)
        target, predicted = self.guided_velocity(models, eps - x0, x, t, condition, scale)
        change = self.change(models, x, predicted, r, t, condition, scale)
        u = self.mean_velocity(models["student"], x, r, t, condition, scale)
        compound = u + expand(t - r, x) * change  # equation 12
        error = (compound - target).flatten(1).square().sum(1)
        return (self.weight(error.detach(), r, t, step) * error).mean(), {"error": error.detach().mean() / x0[0].numel()}

    @torch.no_grad()
    def guided_velocity(
        self, models: Mapping[str, nn.Module], v: Tensor, x: Tensor, t: Tensor, condition: Condition, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(what V is to be, the velocity that the network predicts), both (B, C, H, W)."""
        network = unwrap(models["student"])
        predicted = self.mean_velocity(network, x, t, t, condition, scale)
        if self.config.teacher.guidance_scale == 1:  # by the config: all processes must call the network as often
            return v, predicted
        blank = self.mean_velocity(network, x, t, t, condition.null(), torch.ones_like(scale))
        return v + expand(1 - 1 / scale, x).to(v.dtype) * (predicted - blank), predicted
