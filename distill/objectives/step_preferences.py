"""Step-aware preference optimisation, SPO (arXiv 2406.04314): at every step the better of several next steps.

From one x several next ones are drawn; each is judged by the clean picture that it leads to, the best is to become more
probable than the worst, and a random one is gone on from, so that steps do not depend on one another's choices. The published
preference model looks at noisy pictures; here rewards judge the student's own predictions of clean ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import solver_steps, transitions
from distill.losses.levels import draw_index
from distill.losses.transitions import log_prob
from distill.objectives.bases.paired import preference_loss
from distill.objectives.bases.teacher import Scale
from distill.objectives.bases.trajectory import TrajectoryConfig, TrajectoryObjective
from distill.objectives.pairwise_sample import held_ratio
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition


class StepPreferencesConfig(TrajectoryConfig):
    """candidates: next steps that are drawn. threshold: pairs whose rewards differ by no more are left out. skipped: so many of
    the noisiest steps, which decide little that can be judged, are not trained. beta, clip: as of `pso`."""

    candidates: int = Field(default=4, ge=2)
    threshold: float = Field(default=0.3, ge=0)
    skipped: int = Field(default=4, ge=0)
    beta: float = Field(default=10.0, gt=0)
    clip: float | None = Field(default=0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _trains(self) -> StepPreferencesConfig:
        if self.skipped > self.steps - 2:
            raise ValueError(
                f"skipped is {self.skipped} of {self.steps} steps, so none is trained; give {self.steps - 2} or less"
            )
        return self


@dataclass(frozen=True)
class ChosenStep:
    """A step from x at the level `number`: the best and the worst of the candidates, and 1 (B,) where they count as a pair."""

    number: int
    x: Tensor
    best: Tensor
    worst: Tensor
    counted: Tensor


class StepPreferencesObjective(TrajectoryObjective):
    """See the module."""

    source = "arXiv 2406.04314"
    config: StepPreferencesConfig

    @torch.no_grad()
    def choose(
        self, student: nn.Module, batch: Batch, condition: Condition, scale: Scale, draws: Draws
    ) -> tuple[list[ChosenStep], Tensor]:
        """(the steps to train, x0 at the end)."""
        config, x, chosen = self.config, self.start(draws.normal_like("eps", self.clean(batch))), []
        rows = torch.arange(len(x), device=x.device)
        for number in self.noisy_steps():
            mean, deviation = self.transition(student, x, number, condition, scale)
            nexts = torch.stack(
                [
                    transitions.drawn(mean, deviation, draws.normal_like(f"candidate {number} {k}", x))
                    for k in range(config.candidates)
                ]
            )
            if number <= self.levels.steps - config.skipped:
                level = self.level(number - 1, x)
                rewards = torch.stack(
                    [self.score(self.predict(student, one, level, condition, scale).x0, batch) for one in nexts]
                )
                best, worst = rewards.argmax(0), rewards.argmin(0)
                gap = rewards[best, rows] - rewards[worst, rows]
                counted = (gap > config.threshold).float()
                chosen.append(ChosenStep(number, x, nexts[best, rows], nexts[worst, rows], counted))
            x = nexts[draw_index(draws, f"next {number}", config.candidates, x.device), rows]
        s, t = self.level(1, x), self.level(0, x)
        return chosen, solver_steps.ddim(self.predict(student, x, s, condition, scale).x0, x, s, t)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device, config = self.clean(batch).device, self.config
        condition, scale = self.condition_of(batch, draws, device), self.config.default_guidance_scale
        chosen, x0 = self.choose(unwrap(models["student"]), batch, condition, scale, draws)
        total = torch.zeros((), device=device)
        logged: dict[str, Tensor] = {}
        for one in chosen:
            own = self.transition(models["student"], one.x, one.number, condition, scale)
            with torch.no_grad():
                reference = self.transition(models["teacher"], one.x, one.number, condition, scale)
            better, worse = (
                held_ratio(log_prob(ahead, *own) - log_prob(ahead, *reference), config.clip) for ahead in (one.best, one.worst)
            )
            # arXiv 2406.04314, equation 9
            loss, logged = preference_loss(config.beta * (better - worse), one.counted)
            total = total + loss / len(chosen)
        with torch.no_grad():
            reward = self.score(x0, batch).mean()
        return total, {**logged, "reward": reward, "counted": torch.stack([one.counted.mean() for one in chosen]).mean()}
