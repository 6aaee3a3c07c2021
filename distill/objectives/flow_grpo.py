"""Flow-GRPO (arXiv 2505.05470): policy gradients through the steps of an SDE, with advantages within groups of one prompt.

    L = -E min(ratio A, clip(ratio, 1 - c, 1 + c) A) + kl D(step || reference's step)

on each step with noise, ratio = p / p_old of the step that was taken. With a `window`, only the steps in it have noise and are
trained, the others being the ODE's; the window moves from noise to data (MixGRPO, arXiv 2507.21802).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.transitions import Noise, divergence, log_prob
from distill.objectives.bases.advantages import advantages
from distill.objectives.bases.frozen_copies import ema_update, frozen_copy
from distill.objectives.bases.trajectory import TrajectoryConfig, TrajectoryObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase


class FlowGrpoConfig(TrajectoryConfig):
    """group: samples, one after another, of the first one's prompt. clip: c above. kl: weight of the divergence from the
    reference; 0 for none. normalise: advantages over their group's deviation. refresh: updates for which one policy draws the
    trajectories (then ratios differ from 1). window, window_every: steps with noise (None: all), and updates after which it
    moves by one.
    """

    steps: int = Field(default=10, gt=1)
    noise: Noise = "flow"
    eta: float = Field(default=0.7, gt=0)
    group: int = Field(default=8, ge=2)
    clip: float = Field(default=1e-4, gt=0, lt=1)
    kl: float = Field(default=0.04, ge=0)
    normalise: bool = True
    refresh: int = Field(default=1, ge=1)
    window: int | None = Field(default=None, ge=1)
    window_every: int = Field(default=25, ge=1)

    @model_validator(mode="after")
    def _window_fits(self) -> FlowGrpoConfig:
        if self.window is not None and self.window > self.steps - 1:
            raise ValueError(f"window is {self.window}, and {self.steps - 1} steps may have noise; give at most as many")
        return self


class FlowGrpoObjective(TrajectoryObjective):
    """See the module. Where one policy draws for several updates, it is the role `old`."""

    source = "arXiv 2505.05470"
    config: FlowGrpoConfig

    def __init__(self, config: FlowGrpoConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        if config.refresh > 1:
            self.roles["old"] = frozen_copy(self.roles["student"].network)

    def trained(self, step: int) -> range:
        """The numbers of the levels from which steps with noise begin at an update."""
        every, window = self.noisy_steps(), self.config.window
        if window is None:
            return every
        # arXiv 2507.21802, Algorithm 1: it moves on by one, and stays at the end
        first = min(step // self.config.window_every, len(every) - window)
        return every[first : first + window]

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        batch, like = self.in_groups(batch, config.group), self.clean(batch)
        condition, scale = self.condition_of(batch, draws, like.device, config.group), config.default_guidance_scale
        old = unwrap(models["old" if "old" in self.roles else "student"])
        taken, x0 = self.rollout(old, draws.normal_like("eps", like), condition, scale, draws, self.trained(step))
        with torch.no_grad():
            rewards = self.score(x0, batch)
        gain = advantages(rewards, config.group, config.normalise)
        total, apart = torch.zeros((), device=like.device), torch.zeros((), device=like.device)
        for one in taken:
            mean, deviation = self.transition(models["student"], one.x, one.number, condition, scale)
            own = log_prob(one.ahead, mean, deviation)
            if old is unwrap(models["student"]):
                before = own.detach()
            else:
                with torch.no_grad():
                    before = log_prob(one.ahead, *self.transition(old, one.x, one.number, condition, scale))
            ratio = (own - before).exp()
            # arXiv 2505.05470, equation 5
            surrogate = torch.minimum(ratio * gain, ratio.clamp(1 - config.clip, 1 + config.clip) * gain)
            total = total - surrogate.mean() / len(taken)
            if config.kl:
                with torch.no_grad():
                    reference, _ = self.transition(models["teacher"], one.x, one.number, condition, scale)
                apart = apart + divergence(mean, reference, deviation).mean() / len(taken)
        return total + config.kl * apart, {"reward": rewards.mean(), "divergence": apart.detach()}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if "old" in self.roles and (step + 1) % self.config.refresh == 0:
            ema_update(self.roles["old"].network, self.roles["student"].network, 0.0)

    def kept(self) -> dict[str, nn.Module]:
        return {**super().kept(), **({"old": self.roles["old"].network} if "old" in self.roles else {})}
