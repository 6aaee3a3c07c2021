"""TRACT: transitive closure time-distillation. A student learns to jump to the start of its segment of the teacher's steps.

One step is the teacher's, the rest of the way to the start of the segment is the student's own, averaged: so a stage may
reduce the number of steps by any factor, not two alone.

Source: arXiv 2303.04248, section 3 (binary time-distillation is the case of two steps per segment).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.levels import draw_index
from distill.losses.solver_steps import LevelTable, ddim, inverse_ddim, step
from distill.objectives.bases.stages import StagedConfig, StagedObjective
from distill.types import Batch, Draws, Phase
from gen.models.folder import Defaults
from samplers.path import expand
from samplers.registry import get_grid


class TractConfig(StagedConfig):
    """counts: sampling steps after each stage, from teacher.steps down to `steps`; each divides the one before. stage_steps: of
    training. target_ema: of the self-teacher."""

    counts: tuple[int, ...] = (32, 4)
    stage_steps: int = Field(default=100_000, gt=0)
    target_ema: float | None = Field(default=0.5, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> TractConfig:
        chain = (self.teacher.steps, *self.counts)
        if any(many % few or many == few for many, few in pairwise(chain)) or not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts {self.counts} must fall from teacher.steps {chain[0]}, each a divisor of the one before")
        if self.counts[-1] != self.steps:
            raise ValueError(f"counts end with {self.counts[-1]}, but steps is {self.steps}; make them equal")
        return self


class TractObjective(StagedObjective):
    """See the module."""

    config: TractConfig
    source: ClassVar[str] = "arXiv 2303.04248"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        chain = [LevelTable.of(get_grid(config.schedule, self.path, count, **config.schedule_options)) for count in
                 (config.teacher.steps, *config.counts)]  # fmt: skip
        for fine, coarse in pairwise(chain):
            if not fine.t[:: fine.steps // coarse.steps].allclose(coarse.t, atol=1e-9, rtol=1e-6):
                raise ValueError(
                    f"The schedule {config.schedule!r} does not divide: its levels with {coarse.steps} steps are not among "
                    f"those with {fine.steps}; use uniform."
                )
        self.ladders = chain[:-1]

    def lengths(self) -> list[int]:
        return [self.config.stage_steps] * len(self.config.counts)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        device, stage = x0.device, self.stage(step_number)
        condition, scale = self.condition(batch, device, draws), self.scale(draws, device)
        ladder = self.ladders[stage].to(device)
        length = ladder.steps // self.config.counts[stage]
        i = draw_index(draws, "step", ladder.steps, device)
        start = i // length * length
        t, s, end = ladder[i + 1], ladder[i], ladder[start]
        z_t = t.mix(x0, draws.normal_like("eps", x0))
        solver = self.config.teacher.solver if stage == 0 else "ddim"
        z_s = step(solver, lambda x, level: self.stage_teacher(models, x, level, condition, scale, stage), z_t, t, s)
        # where s is the start of the segment already the self-teacher is not needed, and its level may be clean data
        query = torch.where(i == start, i + 1, i)
        # arXiv 2303.04248, section 3.2: one step of the teacher, the rest of the segment by the self-teacher
        jump = ddim(self.target_predict(models, z_s, ladder[query], condition, scale).x0, z_s, ladder[query], end)
        z_end = torch.where(expand((i == start).to(x0), x0) != 0, z_s, jump)
        target = inverse_ddim(z_end, z_t, t, end)
        return self.error(self.predict(models["student"], z_t, t, condition, scale).x0, target, t)

    def defaults(self) -> Defaults:
        """With the steps of the stage that the run has got to."""
        return super().defaults().model_copy(update={"num_inference_steps": self.config.counts[int(self.reached)]})
