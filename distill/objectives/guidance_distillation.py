"""Guidance distillation: one evaluation of the student says what the teacher says in two, at every level and scale.

The first of the two stages of arXiv 2210.03142 (section 3.1); progressive distillation of the result is the second. The
student receives the scale (embed_guidance, w-conditioning), or learns a fixed one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import model_validator
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.types import Batch, Draws, Phase
from gen.models.folder import Defaults
from samplers.path import NoiseLevel


class GuidanceConfig(RegressionConfig):
    """The student samples as the teacher does by default. time: how levels are drawn. A weight grows without end towards clean
    data, so max_weight holds it."""

    time: TimeConfig = TimeConfig(type="uniform")
    max_weight: float | None = 100.0

    @model_validator(mode="after")
    def _guided(self) -> GuidanceConfig:
        scale_range = self.teacher.guidance_scale
        if isinstance(scale_range, tuple) and not self.embed_guidance:
            raise ValueError("a range of guidance scales needs embed_guidance: true; or give one guidance_scale")
        if scale_range == 1:
            raise ValueError("the teacher's guidance_scale is 1, which is none; give the scale, or a range, to distil")
        return self


class GuidanceObjective(RegressionObjective):
    """See the module."""

    config: GuidanceConfig
    source: ClassVar[str] = "arXiv 2210.03142"

    def draw_level(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """One per sample, never clean data itself."""
        time = self.config.time
        if time.type == "uniform":
            return self.path((1 - draws.uniform("time", device=device).double()) * self.path.t_noise)
        level = draw_levels(time, self.path, draws, device)
        return self.path(level.t.double())

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        level = self.draw_level(draws, x0.device)
        x = level.mix(x0, draws.normal_like("eps", x0))
        # arXiv 2210.03142, section 3.1: x^w = (1 + w) x_c - w x, with w = scale - 1
        target = self.teacher_predict(models, x, level, condition, scale).x0
        return self.error(self.predict(models["student"], x, level, condition, scale).x0, target, level)

    def defaults(self) -> Defaults:
        sampling_keys = ("num_inference_steps", "sampler", "sampler_options", "schedule", "schedule_options")
        return super().defaults().model_copy(update={name: getattr(self.model.defaults, name) for name in sampling_keys})
