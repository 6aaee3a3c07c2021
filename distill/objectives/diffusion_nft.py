"""DiffusionNFT (arXiv 2509.16117): reinforcement on the forward process, by pictures that count as good and bad at once.

An old policy draws pictures; a picture of reward r in [0, 1] within its group pulls the positive policy with weight r and the
negative one, its mirror in the old policy, with 1 - r:

    L = r |x0+ - x0|^2 + (1 - r) |x0- - x0|^2,   x0+- = x0_old +- beta (x0_student - x0_old)

No trajectory is kept, and no step needs a probability. The old policy follows the student by an average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.objectives.bases.advantages import advantages
from distill.objectives.bases.frozen_copies import ema_update, frozen_copy
from distill.objectives.bases.rewarded import RewardedConfig, RewardedObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.path import expand


class DiffusionNftConfig(RewardedConfig):
    """beta: how far the two policies lie from the old one. group: samples, one after another, of the first one's prompt.
    largest: an advantage, in deviations of its group, at which a picture counts as wholly good. old_decay: (first, rate, last):
    the old policy's decay is min(rate max(step - first, 0), last). kl: weight of the squared distance to the reference.
    time: the levels.
    """

    steps: int = Field(default=10, gt=0)
    beta: float = Field(default=0.1, gt=0)
    group: int = Field(default=8, ge=2)
    largest: float = Field(default=5.0, gt=0)
    old_decay: tuple[int, float, float] = (0, 1e-3, 0.5)
    kl: float = Field(default=1e-4, ge=0)
    time: TimeConfig = TimeConfig(type="uniform")

    @model_validator(mode="after")
    def _decays(self) -> DiffusionNftConfig:
        first, rate, last = self.old_decay
        if first < 0 or rate < 0 or not 0 <= last < 1:
            raise ValueError(f"old_decay is {list(self.old_decay)}; give [first step, rate, last decay below 1], none below 0")
        return self


class DiffusionNftObjective(RewardedObjective):
    """See the module. Role `old` is the policy that draws."""

    source = "arXiv 2509.16117"
    config: DiffusionNftConfig

    def __init__(self, config: DiffusionNftConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.roles["old"] = frozen_copy(self.roles["student"].network)

    def goodness(self, rewards: Tensor) -> Tensor:
        """r (B,) in [0, 1] of rewards (B,), 1/2 for the mean of a group. Equation 9."""
        gain = advantages(rewards, self.config.group, largest=self.config.largest)
        return 0.5 + 0.5 * gain / self.config.largest

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        batch, like = self.in_groups(batch, config.group), self.clean(batch)
        condition, old = self.condition_of(batch, draws, like.device, config.group), unwrap(models["old"])
        with torch.no_grad():
            start = self.start(draws.normal_like("start", like))
            x0 = self.descend(old, start, condition, config.default_guidance_scale)
            rewards = self.score(x0, batch)
        good, scale = self.goodness(rewards), self.training_scale()
        level, eps = draw_levels(config.time, self.path, draws, like.device), draws.normal_like("eps", x0)
        x = level.mix(x0, eps)
        own = self.predict(models["student"], x, level, condition, scale)
        with torch.no_grad():
            before = self.predict(old, x, level, condition, scale)
            reference = self.reference(models, x, level, condition, scale)
        change = config.beta * (own.x0 - before.x0)
        # arXiv 2509.16117, equation 8
        positive, negative = (self.adaptive(before.x0 + sign * change, x0) for sign in (1, -1))
        loss = config.largest / config.beta * (good * positive + (1 - good) * negative).mean()
        apart = (own.raw - reference.raw).square().mean()
        return loss + config.kl * apart, {"reward": rewards.mean(), "divergence": apart.detach()}

    def adaptive(self, found: Tensor, x0: Tensor) -> Tensor:
        """(B,): the squared error of a clean image over its own mean absolute one, which is held constant."""
        error = found - x0
        size = error.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return (error.square() / expand(size, error)).flatten(1).mean(1)

    def after_step(self, step: int) -> None:
        super().after_step(step)
        first, rate, last = self.config.old_decay
        ema_update(self.roles["old"].network, self.roles["student"].network, min(rate * max(step + 1 - first, 0), last))

    def kept(self) -> dict[str, nn.Module]:
        return {**super().kept(), "old": self.roles["old"].network}
