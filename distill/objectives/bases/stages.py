"""Distillation in stages: each stage's student is the next one's teacher.

Which stage a step belongs to is a pure function of the step. At the end of a stage the averaged weights become the teacher of
the next one, and the student goes on from them; both are in the checkpoint.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.objectives.bases.frozen_copies import ema_update, frozen_copy
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.objectives.bases.teacher import Scale, Teacher
from samplers.denoiser import Condition
from samplers.path import NoiseLevel
from samplers.prediction import Prediction

if TYPE_CHECKING:
    from distill.data.source import Source


class StagedConfig(RegressionConfig):
    """stage_ema: decay of the average that a stage ends with, min(stage_ema, (1 + k) / (10 + k)) after k of its steps."""

    stage_ema: float = Field(default=0.999, ge=0, lt=1)


class StagedObjective(RegressionObjective):
    """Roles beside the student's: `average`, and `stage`, the teacher of every stage but the first, which has the model's own.

    Subclasses give `lengths`, the training steps of each stage; the last one goes on for as long as the run does.
    """

    def __init__(self, config: Any, network: nn.Module, source: Source | None = None, teacher: Teacher | None = None):
        super().__init__(config, network, source, teacher)
        student = self.roles["student"].network
        for role in ("average", "stage"):
            self.roles[role] = frozen_copy(student)
        self.ends = list(accumulate(self.lengths()))
        self.reached = torch.zeros((), dtype=torch.int64)  # the stage that the last finished step ended in or led to

    def lengths(self) -> list[int]:
        raise NotImplementedError

    def stage(self, step: int) -> int:
        """The stage of a step, from 0."""
        return min(bisect_right(self.ends, step), len(self.ends) - 1)

    @torch.no_grad()
    def stage_teacher(
        self, models: Mapping[str, nn.Module], x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale, stage: int
    ) -> Prediction:
        """What the teacher of a stage says: the model itself under guidance, then the student of the stage before."""
        if stage == 0:
            return self.teacher_predict(models, x, level, condition, scale)
        return self.target_predict(models, x, level, condition, scale, "stage")

    def after_step(self, step: int) -> None:
        super().after_step(step)
        stage, roles = self.stage(step), self.roles
        done = step - (self.ends[stage - 1] if stage else 0)
        average, student = roles["average"].network, roles["student"].network
        ema_update(average, student, min(self.config.stage_ema, (1 + done) / (10 + done)))
        if self.stage(step + 1) != stage:
            for network in (roles["stage"].network, student, *([roles["target"].network] if "target" in roles else [])):
                ema_update(network, average, 0.0)
        self.reached.fill_(self.stage(step + 1))

    def kept(self) -> dict[str, nn.Module]:
        return {**super().kept(), **{role: self.roles[role].network for role in ("average", "stage")}}

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "reached": self.reached}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if not state:
            raise ValueError(f"{type(self).__name__} needs its stage from the checkpoint, which holds none.")
        super().load_state_dict({name: value for name, value in state.items() if name != "reached"})
        self.reached.copy_(state["reached"])
