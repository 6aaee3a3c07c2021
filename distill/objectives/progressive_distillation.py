"""Progressive distillation: a student learns to do in one step what its teacher does in two; then it is the teacher.

Source: arXiv 2202.00512, Algorithm 2; guided models as in arXiv 2210.03142 (the guidance goes into the first stage).
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.levels import draw_index
from distill.losses.solver_steps import LevelTable, ddim, inverse_ddim
from distill.objectives.bases.stages import StagedConfig, StagedObjective
from distill.types import Batch, Draws, Phase
from gen.models.folder import Defaults
from samplers.registry import get_grid


class ProgressiveConfig(StagedConfig):
    """teacher.steps is halved until `steps` are left, with stage_steps of training for each halving; last_stage_steps for those
    to 2 steps and to 1 (the paper: twice as many). The schedule is one whose levels with N steps are among those with 2 N."""

    stage_steps: int = Field(default=50_000, gt=0)
    last_stage_steps: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _halves(self) -> ProgressiveConfig:
        count, more = divmod(self.teacher.steps, self.steps)
        if more or count < 2 or count & (count - 1):
            raise ValueError(
                f"teacher.steps {self.teacher.steps} cannot be halved to steps {self.steps}; give 2, 4, 8, ... times as many"
            )
        if self.teacher.solver == "heun":
            raise ValueError("progressive distillation solves for a DDIM step: set teacher.solver to ddim")
        return self

    @property
    def counts(self) -> list[int]:
        """The student's steps in each stage."""
        counts = [self.teacher.steps // 2]
        while counts[-1] > self.steps:
            counts.append(counts[-1] // 2)
        return counts


class ProgressiveObjective(StagedObjective):
    """See the module."""

    config: ProgressiveConfig
    source: ClassVar[str] = "arXiv 2202.00512"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.ladders = [self._grid(2 * count) for count in config.counts]
        for fine, coarse in pairwise([*self.ladders, self._grid(config.steps)]):
            if not fine.t[::2].allclose(coarse.t, atol=1e-9, rtol=1e-6):
                raise ValueError(
                    f"The schedule {config.schedule!r} does not halve: its levels with {coarse.steps} steps are not among "
                    f"those with {fine.steps}; use uniform."
                )

    def _grid(self, count: int) -> LevelTable:
        return LevelTable.of(get_grid(self.config.schedule, self.path, count, **self.config.schedule_options))

    def lengths(self) -> list[int]:
        config = self.config
        return [config.stage_steps if count > 2 else config.last_stage_steps or config.stage_steps for count in config.counts]

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        device, stage = x0.device, self.stage(step)
        condition, scale = self.condition(batch, device, draws), self.scale(draws, device)
        ladder = self.ladders[stage].to(device)
        i = draw_index(draws, "step", ladder.steps // 2, device)
        t, middle, s = (ladder[2 * i + k] for k in (2, 1, 0))
        z_t = t.mix(x0, draws.normal_like("eps", x0))
        # arXiv 2202.00512, Algorithm 2: z_t' and z_t'', two DDIM steps of the teacher
        z_middle = ddim(self.stage_teacher(models, z_t, t, condition, scale, stage).x0, z_t, t, middle)
        z_s = ddim(self.stage_teacher(models, z_middle, middle, condition, scale, stage).x0, z_middle, middle, s)
        # Algorithm 2: x~ = (z_t'' - sigma_t'' / sigma_t z_t) / (alpha_t'' - sigma_t'' / sigma_t alpha_t)
        target = inverse_ddim(z_s, z_t, t, s)
        return self.error(self.predict(models["student"], z_t, t, condition, scale).x0, target, t)

    def defaults(self) -> Defaults:
        """With the steps of the stage that the run has got to."""
        return super().defaults().model_copy(update={"num_inference_steps": self.config.counts[int(self.reached)]})
