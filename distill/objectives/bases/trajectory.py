"""Methods that learn from steps with noise: trajectories of the student, and how probable their steps are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.losses import solver_steps, transitions
from distill.losses.transitions import Noise
from distill.objectives.bases.rewarded import RewardedConfig, RewardedObjective
from distill.objectives.bases.teacher import Scale
from distill.types import Draws
from samplers.denoiser import Condition


@dataclass(frozen=True)
class TakenStep:
    """A step that was taken: from x (B, C, h, w) at the level `number` to `ahead` at the next cleaner one."""

    number: int
    x: Tensor
    ahead: Tensor


class TrajectoryConfig(RewardedConfig):
    """noise: how steps are noisy: ddim (with eta), flow (an SDE with the flow's marginals) or renoise, as a few-step student is
    sampled, and this one when it is finished. eta: of DDIM, or the flow's noise level. The step to clean data has no noise,
    which would stay in the picture."""

    noise: Noise = "ddim"
    eta: float = 1.0


class TrajectoryObjective(RewardedObjective):
    """See the module."""

    config: Any

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.sampler = "lcm" if config.noise == "renoise" else "ddim"

    def noisy_steps(self) -> range:
        """The numbers of the levels from which steps with noise begin, the noisiest first."""
        return range(self.levels.steps, 1, -1)

    def transition(
        self, network: nn.Module, x: Tensor, number: int, condition: Condition, scale: Scale
    ) -> tuple[Tensor, Tensor]:
        """(mean (B, C, h, w), deviation (B,)) of x at the level below `number`, under a network."""
        s, t, config = self.level(number, x), self.level(number - 1, x), self.config
        x0 = self.predict(network, x, s, condition, scale).x0
        if config.noise == "renoise":
            return transitions.renoise(x0, t)
        if config.noise == "ddim":
            return transitions.ddim(x0, x, s, t, config.eta)
        second = self.levels.steps - 1  # stands for pure noise, where the SDE's noise is infinite
        alpha, sigma = float(self.levels.alpha[second]), float(self.levels.sigma[second])
        largest = sigma / (alpha + sigma)
        return transitions.flow(x0, x, s, t, config.eta, largest)

    @torch.no_grad()
    def rollout(
        self, network: nn.Module, noise: Tensor, condition: Condition, scale: Scale, draws: Draws, numbers: Collection[int]
    ) -> tuple[list[TakenStep], Tensor]:
        """(the steps with noise, from levels `numbers`; x0 at the end), from unit noise. Other steps have none."""
        x, steps = self.start(noise), []
        for number in range(self.levels.steps, 0, -1):
            if number in numbers:
                mean, deviation = self.transition(network, x, number, condition, scale)
                ahead = transitions.drawn(mean, deviation, draws.normal_like(f"noise {number}", x))
                steps.append(TakenStep(number, x, ahead))
            else:
                s, t = self.level(number, x), self.level(number - 1, x)
                ahead = solver_steps.ddim(self.predict(network, x, s, condition, scale).x0, x, s, t)
            x = ahead
        return steps, x
