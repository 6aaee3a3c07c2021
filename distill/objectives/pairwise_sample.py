"""Pairwise sample optimisation, PSO (arXiv 2410.03190): preferences for models that draw in few steps.

Two trajectories begin at the same noise and differ by what is added on the way; the one of the higher reward is to become more
probable than the other, step by step and beside the reference. The last step, which has no noise, has no probability.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.transitions import Noise, log_prob
from distill.objectives.bases.paired import preference_loss
from distill.objectives.bases.trajectory import TrajectoryConfig, TrajectoryObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase


class PairwiseSampleConfig(TrajectoryConfig):
    """beta: what a difference of log-probabilities, means over dimensions, counts. clip: ratios of probabilities to the
    reference's are kept within 1 - clip and 1 + clip; None: as they are."""

    steps: int = Field(default=4, gt=1)
    noise: Noise = "renoise"
    beta: float = Field(default=50.0, gt=0)
    clip: float | None = Field(default=0.1, gt=0, lt=1)


def held_ratio(log_ratio: Tensor, clip: float | None) -> Tensor:
    """Log-ratios whose ratios are kept within 1 - clip and 1 + clip."""
    return log_ratio if clip is None else log_ratio.clamp(math.log1p(-clip), math.log1p(clip))


class PairwiseSampleObjective(TrajectoryObjective):
    """See the module."""

    source = "arXiv 2410.03190"
    config: PairwiseSampleConfig

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, like, config = self.in_groups(batch, 2), self.clean(batch), self.config
        condition, scale = self.condition_of(batch, draws, like.device, 2), self.config.default_guidance_scale
        pair = Draws(draws.seed, draws.index[::2], draws.phase)
        noise = pair.normal_like("eps", like).repeat_interleave(2, 0)
        taken, x0 = self.rollout(unwrap(models["student"]), noise, condition, scale, draws, self.noisy_steps())
        with torch.no_grad():
            rewards = self.score(x0, batch)
        order = (rewards[::2] - rewards[1::2]).sign()
        total = torch.zeros((), device=like.device)
        logged: dict[str, Tensor] = {}
        for one in taken:
            own = log_prob(one.ahead, *self.transition(models["student"], one.x, one.number, condition, scale))
            with torch.no_grad():
                reference = log_prob(one.ahead, *self.transition(models["teacher"], one.x, one.number, condition, scale))
            change = held_ratio(own - reference, config.clip)
            # arXiv 2410.03190, equation 8
            loss, logged = preference_loss(config.beta * order * (change[::2] - change[1::2]), order.abs())
            total = total + loss / len(taken)
        return total, {**logged, "reward": rewards.mean()}
