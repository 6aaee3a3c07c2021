"""DMDR: distribution matching and a reward at once, where each keeps the other from going wrong.

The reward takes the student where the teacher seldom goes; matching, which is on all along, keeps it from deceiving the reward.
Two schedules over the first steps, before the reward is asked, make it easier. The distribution to be matched is the teacher's
with a share of the critic's changes in it, which falls to 0, so that it and the student's overlap. And levels are noisy at
first, so that the whole comes before details.

A reward is raised as it is (ReFL, arXiv 2304.05977), or relative to words before the prompt (SRPO, arXiv 2509.06942): what a
picture gains as one "better. PROMPT" beyond what it gains as one "worse. PROMPT", so that what both want, such as more of
everything, moves nothing.

Source: arXiv 2511.13649; its published code, vvvvvjdy/dmdr, for the schedules, both rewards and their hinge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.networks.lora.overlay import LoraConfig, LoraNetwork
from distill.objectives.bases.teacher import Scale
from distill.objectives.lora_critic import LoraCriticConfig, LoraCriticObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws
from gen.rewards import reward_info
from samplers.denoiser import Condition
from samplers.guidance.two_branch import Guided
from samplers.noise import fold
from samplers.path import NoiseLevel


class RewardedMatchingConfig(LoraCriticConfig):
    """As of all with a LoRA critic, and:

    reward_from: the first step that asks the reward, which is raised.
    dynamic_steps: how long the two schedules last, each along half a cosine. critic_share: of the critic's changes in the
    distribution that is matched, at first. beta: (a, b) of the Beta distribution of levels on the clock at first, 1 being the
    noisiest; at last it is (1, 1), uniform, and `time` is not read.
    better, worse: words, of which a step takes one each at random; none: the reward as it is. emphasis: k of
    (1 + k) reward(better) - reward(worse). enough: pictures of such a reward are left alone; None: it is raised without end.
    """

    critic_lora: LoraConfig = LoraConfig(rank=32)
    reward_from: int = Field(default=0, ge=0)
    dynamic_steps: int = Field(default=0, ge=0)
    critic_share: float = Field(default=0.25, ge=0, le=1)
    beta: tuple[float, float] = (4.0, 1.5)
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    emphasis: float = Field(default=0.1, ge=0)
    enough: float | None = None

    @model_validator(mode="after")
    def _possible(self) -> RewardedMatchingConfig:
        if min(self.beta) < 1:
            raise ValueError(f"beta {self.beta} must be at least 1 in both numbers, as less has most levels at the very ends")
        if bool(self.better) != bool(self.worse):
            raise ValueError("a relative reward compares words: give both better and worse, or neither")
        if self.better and (self.reward is None or not reward_info(self.reward.type).reads_prompts):
            raise ValueError("better and worse stand before prompts: give a reward that reads them, such as clip or hps")
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
        found, judged = self.rewarded(x0, batch, step), self.reward.judged(batch, x0.device)
        gained = found if self.config.enough is None else -(self.config.enough - found).clamp(min=0)
        total = torch.where(judged, gained, 0.0).mean()
        return -self.reward.term.weight * total.to(x0), {"reward": torch.where(judged, found.detach(), 0.0).mean()}

    def rewarded(self, x0: Tensor, batch: Batch, step: int) -> Tensor:
        """(B,): the reward of pictures, or what they gain by better words beyond worse ones."""
        config = self.config
        assert self.reward is not None
        if not config.better:
            return self.reward(x0, batch)
        chance = torch.Generator().manual_seed(fold(step, "words"))
        words = [group[int(torch.randint(len(group), (), generator=chance))] for group in (config.better, config.worse)]
        captions = self.reward.prompts(batch)
        better, worse = (
            self.reward(x0, replace(batch, captions=[f"{word}. {caption}" for caption in captions])) for word in words
        )
        return (1 + config.emphasis) * better - worse  # of arXiv 2509.06942


def beta_quantile(u: Tensor, a: float, b: float, points: int = 8193) -> Tensor:
    """The quantiles u (B,) of Beta(a, b) with a, b >= 1, by its integral over a fine grid."""
    x = torch.linspace(0, 1, points, dtype=torch.float64, device=u.device)
    density = x ** (a - 1) * (1 - x) ** (b - 1)
    total = torch.cat([density.new_zeros(1), torch.cumsum((density[1:] + density[:-1]) / 2, 0)])
    total = total / total[-1]
    above = torch.searchsorted(total, u.contiguous(), right=True).clamp(1, points - 1)
    low, high = total[above - 1], total[above]
    return torch.lerp(x[above - 1], x[above], ((u - low) / (high - low).clamp(min=1e-300)).clamp(0, 1))
