"""Phased consistency models: one consistency model per phase of the path, sampled deterministically in as many steps.

A point of a phase is taken to the phase's end by the student; so is the point that one step of the guided teacher makes of it;
the two ends are drawn together. A discriminator on the frozen teacher's features does the same for their distributions, both
noised again to a level of the phase.

Source: arXiv 2405.18407, sections 3.1 to 3.3. The paper's guidance w is our guidance_scale - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig
from distill.losses.distances import Weight
from distill.losses.levels import draw_index
from distill.losses.solver_steps import LevelTable, ddim
from distill.networks.discriminator import Noised
from distill.objectives.bases.feature_judge import FeatureJudge
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.objectives.bases.teacher import Scale
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import NoiseLevel, expand


class PhasedConsistencyConfig(RegressionConfig, AdversarialLossConfig):
    """`steps` is the number of phases; teacher.steps, a multiple of it, that of the teacher's steps over the whole path.
    adversarial_weight: of the student's share of the hinge loss, 0 for none; blocks: those of the teacher whose tokens are
    judged (none given: a quarter, half and three quarters of the way through)."""

    distance: Literal["l2", "pseudo_huber", "huber", "perceptual"] = "huber"
    weight: Weight = "uniform"
    adversarial_weight: float = Field(default=0.1, ge=0)
    blocks: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _divides(self) -> PhasedConsistencyConfig:
        if self.teacher.steps % self.steps:
            raise ValueError(f"teacher.steps {self.teacher.steps} must be a multiple of steps {self.steps}, one phase each")
        return self


class PhasedConsistencyObjective(FeatureJudge, RegressionObjective):
    """See the module. Role `discriminator` beside the student's, where it has weight."""

    config: PhasedConsistencyConfig
    source: ClassVar[str] = "arXiv 2405.18407"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.length = config.teacher.steps // config.steps
        if not self.teacher_levels.t[:: self.length].allclose(self.levels.t, atol=1e-9, rtol=1e-6):
            raise ValueError(
                f"The ends of the phases are the student's levels (schedule {config.schedule!r}) and must be among the "
                f"teacher's (teacher.schedule {config.teacher.schedule!r}); use uniform for both."
            )
        if config.adversarial_weight:
            self.add_discriminator(lambda depth: tuple(sorted({depth * part // 4 for part in (1, 2, 3)})))

    def ends(
        self, models: Mapping[str, nn.Module], student: nn.Module, batch: Batch, draws: Draws
    ) -> tuple[Tensor, Tensor, LevelTable, Tensor, Condition]:
        """(the student's end of the phase, the target's, the ladder, the number of the phase's first level, the condition)."""
        x0 = self.clean(batch)
        device, ladder = x0.device, self.teacher_levels.to(x0.device)
        condition, scale = self.condition(batch, device, draws), self.scale(draws, device)
        i = draw_index(draws, "step", ladder.steps, device)
        start = i // self.length * self.length
        t, end = ladder[i + 1], ladder[start]
        z_t = t.mix(x0, draws.normal_like("eps", x0))
        mine = ddim(self.predict(student, z_t, t, condition, scale).x0, z_t, t, end)
        return mine, self.target(models, z_t, i, start, ladder, condition, scale), ladder, start, condition

    @torch.no_grad()
    def target(
        self,
        models: Mapping[str, nn.Module],
        z_t: Tensor,
        i: Tensor,
        start: Tensor,
        ladder: LevelTable,
        condition: Condition,
        scale: Scale,
    ) -> Tensor:
        """One step of the teacher from level i + 1 to i, then the student to the end; where i is the end, the step alone."""
        z_s = self.teacher_step(models, z_t, ladder[i + 1], ladder[i], condition, scale)
        return self.onward(models, z_s, i, start, ladder, condition, scale)

    def noised(self, z: Tensor, draws: Draws, name: str, ladder: LevelTable, start: Tensor, level: NoiseLevel) -> Noised:
        """z at the start of its phase, taken up to a level by the forward process."""
        ratio = level.alpha / ladder.alpha[start]
        spread = (level.sigma**2 - (ratio * ladder.sigma[start]) ** 2).clamp(min=0).sqrt()
        return Noised(expand(ratio, z) * z + expand(spread, z) * draws.normal_like(name, z), level)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "discriminator":
            return self.discriminator_loss(models, batch, draws)
        mine, target, ladder, start, condition = self.ends(models, models["student"], batch, draws)
        t = ladder[start + 1]
        # arXiv 2405.18407, section 3.1: the two ends of the phase are drawn together
        total, logged = self.error(mine, target, t)
        if not self.config.adversarial_weight:
            return total, logged
        level = ladder[self.judged(draws, start)]
        adversarial = self.fooling(
            models,
            lambda: self.noised(target, draws, "real", ladder, start, level),
            self.noised(mine, draws, "fake", ladder, start, level),
            condition,
            lambda logits: F.relu(1 - logits).mean(),  # section 3.3: the adversarial consistency loss, its student's half
        )
        return total + self.config.adversarial_weight * adversarial, {**logged, "adversarial": adversarial.detach()}

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            mine, target, ladder, start, condition = self.ends(models, unwrap(models["student"]), batch, draws)
        level = ladder[self.judged(draws, start)]
        real = self.noised(target, draws, "real", ladder, start, level)
        return self.told_apart(models, real, self.noised(mine, draws, "fake", ladder, start, level), condition)

    def judged(self, draws: Draws, start: Tensor) -> Tensor:
        """The level at which the discriminator looks: any of the phase's, its start excepted (there is no noise to add)."""
        return start + 1 + draw_index(draws, "judged", self.length, start.device)
