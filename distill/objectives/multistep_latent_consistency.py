"""Multistep latent consistency (MLCM, later TLCM): consistency within segments, then across them, from prompts alone.

No picture is needed. First the points are those of the teacher's own trajectories, made from noise in more steps the cleaner
they are, and the student is consistent within each of M segments, of which there are fewer as training goes on. Then it is
consistent over the whole path, but at the M ends of segments only: points are what the student itself draws, noised to such an
end, and the teacher goes down a whole segment in a few steps.

Source: arXiv 2406.05768, section 4. Its reward, distribution-matching and adversarial stages are other methods here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.distances import Weight
from distill.losses.levels import draw_index
from distill.losses.solver_steps import LevelTable, ddim
from distill.objectives.bases.regression import RegressionConfig, RegressionObjective
from distill.objectives.bases.teacher import Scale, TeacherConfig
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import expand


class MultistepLatentConfig(RegressionConfig):
    """segments: M, one number after another, each for segment_steps steps of the run and the last for the rest; teacher.steps,
    the levels of the path, is a multiple of each. denoising_steps: of the teacher from noise down to clean data.

    milestones_from: the step of the run from which the student is consistent across segments; None: never. simulate: steps in
    which it then draws its own samples. bridge_steps: of the teacher over a segment.
    """

    distance: Literal["l2", "pseudo_huber", "huber", "perceptual"] = "l2"
    weight: Weight = "uniform"
    teacher: TeacherConfig = TeacherConfig(guidance_scale=8.0, steps=48)
    segments: tuple[int, ...] = (8,)
    segment_steps: int = Field(default=1000, gt=0)
    denoising_steps: int = Field(default=8, gt=0)
    milestones_from: int | None = Field(default=None, ge=0)
    simulate: int = Field(default=4, gt=0)
    bridge_steps: int = Field(default=3, gt=0)

    @model_validator(mode="after")
    def _divides(self) -> MultistepLatentConfig:
        if not self.segments or any(count < 1 or self.teacher.steps % count for count in self.segments):
            raise ValueError(
                f"segments {list(self.segments)}: give numbers of which teacher.steps {self.teacher.steps} is a multiple"
            )
        if self.teacher.solver != "ddim":
            raise ValueError(f"teacher.solver {self.teacher.solver!r}: points of trajectories are made with ddim")
        return self


class MultistepLatentObjective(RegressionObjective):
    """See the module."""

    config: MultistepLatentConfig
    source: ClassVar[str] = "arXiv 2406.05768"

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.sampler = "ddim" if config.milestones_from is None else "lcm"

    def clean(self, batch: Batch) -> Tensor:
        """As of any method; zeros of the model's size for prompts without pictures, which only say what shape noise has."""
        if batch.images is not None or batch.latents is not None:
            return super().clean(batch)
        return self.teacher.blank(batch)

    def length(self, step: int) -> int:
        """How many levels a segment has at a step of the run."""
        stage = min(step // self.config.segment_steps, len(self.config.segments) - 1)
        return self.config.teacher.steps // self.config.segments[stage]

    # ---- points ----

    def down(
        self,
        models: Mapping[str, nn.Module],
        z: Tensor,
        number: Tensor,
        stops: Sequence[Tensor],
        ladder: LevelTable,
        condition: Condition,
        scale: Scale,
    ) -> Tensor:
        """z at the levels of numbers (B,), taken by the teacher's DDIM from stop to stop (B,); a sample whose next stop is
        where it is rests there."""
        for below in stops:
            z, number = self.teacher_step(models, z, ladder[number], ladder[below], condition, scale), below
        return z

    @torch.no_grad()
    def drawn(
        self, student: nn.Module, eps: Tensor, ladder: LevelTable, condition: Condition, scale: Scale, draws: Draws
    ) -> Tensor:
        """x0 that the student draws in `simulate` even steps with new noise at each."""
        steps, x0 = self.config.simulate, torch.zeros_like(eps)
        for taken in range(steps):
            level = ladder[torch.full((len(eps),), ladder.steps * (steps - taken) // steps, device=eps.device)]
            z = level.mix(x0, draws.normal_like(f"eps {taken}", eps) if taken else eps)
            x0 = self.predict(unwrap(student), z, level, condition, scale).x0
        return x0

    # ---- the loss ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        like = self.clean(batch)
        device, ladder, length = like.device, self.teacher_levels.to(like.device), self.length(step)
        condition, scale = self.condition(batch, device, draws), self.scale(draws, device)
        eps = draws.normal_like("eps", like)
        top = torch.full((len(like),), ladder.steps, device=device)
        from_step, count = self.config.milestones_from, self.config.denoising_steps
        if from_step is None or step < from_step:  # within segments
            t = 1 + draw_index(draws, "step", ladder.steps, device)
            s, end = t - 1, (t - 1) // length * length
            # even steps to clean data, of which noisier levels take fewer
            stops = [torch.maximum(top * (count - taken) // count, t) for taken in range(1, count + 1)]
            z_t = self.down(models, expand(ladder[top].sigma, eps) * eps, top, stops, ladder, condition, scale)
            z_s = self.teacher_step(models, z_t, ladder[t], ladder[s], condition, scale)
        else:  # across segments, at their ends
            t = length * (1 + draw_index(draws, "step", ladder.steps // length, device))
            s, end = t - length, torch.zeros_like(t)
            x0 = self.drawn(models["student"], eps, ladder, condition, scale, draws)
            z_t = ladder[t].mix(x0, draws.normal_like("milestone", like))
            bridge = self.config.bridge_steps
            stops = [t - length * taken // bridge for taken in range(1, bridge + 1)]
            z_s = self.down(models, z_t, t, stops, ladder, condition, scale)
        target = self.onward(models, z_s, s, end, ladder, condition, scale)
        mine = ddim(self.predict(models["student"], z_t, ladder[t], condition, scale).x0, z_t, ladder[t], ladder[end])
        return self.error(mine, target, ladder[t])
