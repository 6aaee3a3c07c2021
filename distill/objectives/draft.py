"""DRaFT (arXiv 2309.17400): the gradient of a reward of the finished picture, through the steps that made it.

Through all steps of the sampler, through the last K (DRaFT-K), or through the last alone, averaged over pictures that are
noised again to where it began (DRaFT-LV, whose gradient varies less). Steps before those build no graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.objectives.bases.rewarded import RewardedConfig, RewardedObjective
from distill.objectives.bases.teacher import Scale
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition


class DraftConfig(RewardedConfig):
    """through: the last steps that the gradient goes through; None: all of them.

    renoised: pictures noised again to the start of the last step, whose rewards' gradients are averaged in the place of the one
    through the sampled step; 0 for none. It goes with `through: 1`, and the published number is 2.
    """

    through: int | None = Field(default=1, ge=1)
    renoised: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> DraftConfig:
        if self.through is not None and self.through > self.steps:
            raise ValueError(f"through is {self.through}, and there are {self.steps} steps; give fewer, or null for all")
        if self.renoised and self.through != 1:
            raise ValueError(f"renoised is {self.renoised}, which is for the last step alone; give through: 1 with it")
        return self


class DraftObjective(RewardedObjective):
    """See the module."""

    source = "arXiv 2309.17400"
    config: DraftConfig

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        like, student = self.clean(batch), models["student"]
        condition, scale = self.condition_of(batch, draws, like.device), self.scale(draws, like.device)
        last = self.config.through or self.levels.steps
        with torch.no_grad():
            x = self.start(draws.normal_like("eps", like))
            x = self.descend(unwrap(student), x, condition, scale, end=last)
            if self.config.renoised:
                x = self.descend(unwrap(student), x, condition, scale, 1)
        if self.config.renoised:
            rewards = self.renoised(student, x, batch, condition, scale, draws)
        else:
            # arXiv 2309.17400, Algorithm 1: x is without a gradient before its last K steps
            rewards = self.score(self.descend(student, x, condition, scale, last), batch)
        return -rewards.mean(), {"reward": rewards.detach().mean()}

    def renoised(
        self, student: nn.Module, x0: Tensor, batch: Batch, condition: Condition, scale: Scale, draws: Draws
    ) -> Tensor:
        """(B,): the mean reward of the last step from `renoised` noisings of a sampled picture. Algorithm 1, DRaFT-LV."""
        level, total = self.level(1, x0), torch.zeros(len(x0), device=x0.device)
        for number in range(self.config.renoised):
            x = level.mix(x0, draws.normal_like(f"renoised {number}", x0))
            total = total + self.score(self.descend(student, x, condition, scale, 1), batch)
        return total / self.config.renoised
