"""Score identity distillation (SiD) and its adversarial form (SiDA): the two scores are to agree wherever the student draws.

Distribution matching (dmd2.py) follows the difference of the scores. Here the loss is its square, the Fisher divergence of the
noised distributions, and the gradient passes through the teacher and the critic to the picture. The critic is never exact, so
two estimates of the divergence are mixed, in denoised means:

    L = (real - fake) . ((real - x0) - alpha (real - fake)) / mean |x0 - real|

For an exact critic x0 is fake in expectation (the score identity), and both estimates are |real - fake|^2. Of the data nothing
is read but captions or labels; SiDA adds a discriminator, which sees the pictures.

Guidance: the teacher's scale, the critic's in the student's loss, and the critic's while it trains are three numbers. All above
1 is the long and short guidance of arXiv 2406.01561; a teacher at 1 beside a critic at 0, or below it, is the Zero-CFG or
Anti-CFG of arXiv 2505.12674.

Sources: arXiv 2404.04057 (SiD), arXiv 2410.14919 (SiDA).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.adversarial import relativistic
from distill.losses.levels import TimeConfig
from distill.networks.discriminator import ChannelMean
from distill.objectives.bases.teacher import predict_guided
from distill.objectives.dmd2 import DistributionMatchingConfig, DistributionMatchingObjective, how_far
from distill.parallel.shards import detached_weights
from distill.types import Batch, Draws, Phase
from samplers.path import NoiseLevel


class ScoreIdentityConfig(DistributionMatchingConfig):
    """As DMD2's, and:

    alpha: how much of the second estimate is taken off the first; 1 is the score identity alone, above 1 corrects the bias of
    the critic.
    critic_time: the levels at which the critic trains; None: those of the student's loss.
    critic_guidance, training_guidance: scales of the critic's own guidance in the student's loss and while it trains.
    judge: what tells data from drawings where adversarial_weight is above 0: the mean over the channels of the critic's tokens,
    as published, or heads with weights of their own. Without `blocks` the mean is taken half way through.
    """

    alpha: float = Field(default=1.2, ge=0, le=2)
    critic_time: TimeConfig | None = None
    critic_guidance: float = Field(default=1.0, ge=-100, le=100)
    training_guidance: float = Field(default=1.0, ge=-100, le=100)
    adversarial_weight: float = Field(default=0.0, ge=0)
    discriminator_weight: float = Field(default=0.0, ge=0)
    judge: Literal["mean", "heads"] = "mean"


class ScoreIdentityObjective(DistributionMatchingObjective):
    """See the module. Roles `student` and `critic` train, each in its phase."""

    config: ScoreIdentityConfig
    source = "arXiv 2404.04057"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.critic_guidance = config.training_guidance

    def _heads(self) -> tuple[nn.Module, tuple[int, ...]]:
        if self.config.judge == "heads":
            return super()._heads()
        return ChannelMean(), self.read(lambda depth: (depth // 2,))[0]

    def trained(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        return self.within(self.config.critic_time or self.config.time, draws, device)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "critic":
            return self.critic_loss(models, batch, draws, step)
        config = self.config
        x0, data, condition, scale = self.rollout(models["student"], batch, draws)
        level = self.compared(draws, x0.device)
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        critic = detached_weights(models["critic"])
        fake, logits = self.judge(critic, x_t, level, condition, scale, config.critic_guidance)
        teacher = self.teacher.denoiser(models["teacher"], self.dtype)
        real = predict_guided(teacher, x_t, level, condition, scale, config.teacher.guidance_interval)
        far = how_far(x0, real.x0)
        total = config.distribution_weight * (identity_loss(x0, fake.x0, real.x0, config.alpha) / far).mean()
        logged = {"score_gap": (fake.x0 - real.x0).detach().abs().mean()}
        if config.adversarial_weight:
            # arXiv 2410.14919, Algorithm 1; the logits are kept within 10 as in its code
            ahead = self.ahead(critic, logits, data, level, condition, scale, draws)
            adversarial = (F.softplus(-ahead.clamp(-10, 10)).mean(1) / far).mean()
            total = total + config.adversarial_weight * adversarial
            logged["adversarial"] = adversarial.detach()
        return total, logged

    def told_apart(self, on_fake: Tensor, on_real: Tensor, level: NoiseLevel) -> Tensor:
        """Counted at a level as the critic's denoising error is."""
        weight = losses.level_weight(self.config.weight, level, self.config.max_weight)
        each = (F.softplus(on_fake) + F.softplus(-on_real)).mean(1) / 2
        if self.config.relativistic:
            each = relativistic(on_real, on_fake).mean(1)
        return (weight.to(each) * each).mean()


def identity_loss(x0: Tensor, fake: Tensor, real: Tensor, alpha: float) -> Tensor:
    """(B,): the mean over pixels of (real - fake) ((real - x0) - alpha (real - fake)), for the denoised means (B, ...) of a
    noised x0 by the two scores; differentiable in all of them."""
    gap = (real - fake).float() if x0.dtype != torch.float64 else real - fake
    # arXiv 2404.04057, Algorithm 1
    return (gap * ((real - x0) - alpha * gap)).flatten(1).mean(1)
