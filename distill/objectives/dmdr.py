"""DMDR: distribution matching and a reward at once, where each keeps the other from going wrong.

The reward takes the student where the teacher seldom goes; matching, which is on all along, keeps it from deceiving the reward.
Two schedules over the first steps, before the reward is asked, make it easier. The distribution to be matched is the teacher's
with a share of the critic's changes in it, which falls to 0, so that it and the student's overlap. And levels are noisy at
first, so that the whole comes before details.

Source: arXiv 2511.13649, and its published code for the schedules and a differentiable reward (ReFL, arXiv 2304.05977).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.networks.lora.overlay import LoraConfig, LoraNetwork
from distill.objectives.bases.teacher import Scale
from distill.objectives.lora_critic import LoraCriticConfig, LoraCriticObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws
from samplers.denoiser import Condition
from samplers.guidance.two_branch import Guided
from samplers.path import NoiseLevel


class RewardedMatchingConfig(LoraCriticConfig):
    """As of all with a LoRA critic, and:

    reward_from: the first step that asks the reward, which is raised.
    dynamic_steps: how long the two schedules last, each along half a cosine. critic_share: of the critic's changes in the
    distribution that is matched, at first. beta: (a, b) of the Beta distribution of levels on the clock at first, 1 being the
    noisiest; at last it is (1, 1), uniform, and `time` is not read.
    """

    critic_lora: LoraConfig = LoraConfig(rank=32)
    reward_from: int = Field(default=0, ge=0)
    dynamic_steps: int = Field(default=0, ge=0)
    critic_share: float = Field(default=0.25, ge=0, le=1)
    beta: tuple[float, float] = (4.0, 1.5)

    @model_validator(mode="after")
    def _possible(self) -> RewardedMatchingConfig:
        if min(self.beta) < 1:
            raise ValueError(f"beta {self.beta} must be at least 1 in both numbers, as less has most levels at the very ends")
        return self


class RewardedMatchingObjective(LoraCriticObjective):
    """See the module."""

    config: RewardedMatchingConfig
    source = "arXiv 2511.13649"

    def left(self, step: int) -> float:
        """How much of the first setting a step has: 1 at first, 0 after dynamic_steps."""
        steps = self.config.dynamic_steps
        return 0.5 * (1 + math.cos(math.pi * step / steps)) if step < steps else 0.0

    def compared(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        a, b = (1 + (value - 1) * self.left(step) for value in self.config.beta)
        low, high = (share * self.path.t_noise for share in self.config.range)
        share = beta_quantile(draws.uniform("time", device=device).double(), a, b)
        return self.path((share * self.path.t_noise).clamp(low, high))

    def judged_real(
        self, models: Mapping[str, nn.Module], x_t: Tensor, level: NoiseLevel, condition: Condition, scale: Scale, step: int
    ) -> Guided:
        share = self.config.critic_share * self.left(step)
        if not share:
            return super().judged_real(models, x_t, level, condition, scale, step)
        critic = unwrap(models["critic"])
        lora = critic.network
        assert isinstance(lora, LoraNetwork)
        with torch.no_grad(), lora.weakened(share):
            prediction, _ = self.judge(critic, x_t, level, condition, scale, scale, self.config.teacher.guidance_interval)
        assert isinstance(prediction, Guided)
        return prediction

    def beside(self, x0: Tensor, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        if self.reward is None or step < self.config.reward_from:
            return super().beside(x0, batch, step)
        found = torch.where(self.reward.judged(batch, x0.device), self.reward(x0, batch), 0.0).mean()
        return -self.reward.term.weight * found.to(x0), {"reward": found.detach()}


def beta_quantile(u: Tensor, a: float, b: float, points: int = 8193) -> Tensor:
    """The quantiles u (B,) of Beta(a, b) with a, b >= 1, by its integral over a fine grid."""
    x = torch.linspace(0, 1, points, dtype=torch.float64, device=u.device)
    density = x ** (a - 1) * (1 - x) ** (b - 1)
    total = torch.cat([density.new_zeros(1), torch.cumsum((density[1:] + density[:-1]) / 2, 0)])
    total = total / total[-1]
    above = torch.searchsorted(total, u.contiguous(), right=True).clamp(1, points - 1)
    low, high = total[above - 1], total[above]
    return torch.lerp(x[above - 1], x[above], ((u - low) / (high - low).clamp(min=1e-300)).clamp(0, 1))
