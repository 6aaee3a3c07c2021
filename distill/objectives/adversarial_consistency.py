"""Adversarial consistency: a latent consistency model whose pictures must also look real to a discriminator.

Beside the consistency loss, the student's clean latents are noised again and judged by heads on the frozen teacher's features,
against noised latents of the data with the same captions. A share of the samples starts at the noisiest level, where a
consistency model alone is blurred: from there the student must draw in one step.

Sources: the discriminator, latent adversarial diffusion distillation, arXiv 2403.12015; its place beside a consistency loss and
the share of samples at the noisiest level, SANA-Sprint, arXiv 2503.09641, section 3.3. Theirs is the continuous-time
consistency loss; here it is that of latent consistency models, arXiv 2310.04378.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.discriminator import TokenHeads, block_features, judge_apart, judged_blocks
from distill.objective import Batch, Draws, Phase, Role
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.parallel import fixed
from samplers.denoiser import Condition
from samplers.path import NoiseLevel


class AdversarialConsistencyConfig(LatentConsistencyConfig):
    """adversarial_weight: of the student's share of the hinge loss, -D. noisiest_share: of the samples that start at the
    noisiest level, in both losses. judged: mean and deviation of the log of sigma / alpha at the levels that the discriminator
    looks at, normally distributed (on a rectified flow, the logit of t). blocks: those of the teacher whose tokens are judged
    (none given: a quarter, half and three quarters of the way through, and the last).
    """

    adversarial_weight: float = Field(0.5, ge=0)
    noisiest_share: float = Field(0.5, ge=0, le=1)
    judged: tuple[float, float] = (0.0, 1.0)
    blocks: tuple[int, ...] = ()


class AdversarialConsistencyObjective(LatentConsistencyObjective):
    """See the module. Role `discriminator` beside those of latent consistency."""

    config: AdversarialConsistencyConfig
    source: ClassVar[str] = "arXiv 2403.12015, 2503.09641"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        sizes: Any = self.given.network.config
        self.blocks = config.blocks or judged_blocks(sizes.depth)
        self.roles["discriminator"] = Role(TokenHeads(sizes.dim, len(self.blocks)), ema=False)

    def judged(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """The levels (B,) that the discriminator looks at, kept between sigma / alpha = e^-5 and e^5."""
        mean, deviation = self.config.judged
        ratio = mean + deviation * draws.normal("judged").double()
        return self.path.at_logsnr(-ratio.clamp(-5, 5).to(device))

    def features(
        self, models: Mapping[str, nn.Module], x0: Tensor, level: NoiseLevel, condition: Condition, noise: Tensor
    ) -> list[Tensor]:
        """The frozen teacher's tokens for x0 with noise added, differentiable in x0."""
        return block_features(self.denoiser(models["teacher"], self.dtype), level.mix(x0, noise), level, condition, self.blocks)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "discriminator":
            return self.discriminator_loss(models, batch, draws)
        z_t, i, condition, scale = self.noised(batch, draws)
        prediction, total, logged = self.consistency(models, z_t, i, condition, scale)
        noise = draws.normal_like("fake", z_t)
        fake = self.features(models, prediction.x0, self.judged(draws, z_t.device), condition, noise)
        adversarial = -fixed(models["discriminator"])(fake).mean()
        return total + self.config.adversarial_weight * adversarial, {**logged, "adversarial": adversarial.detach()}

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the data and of the student's pictures, at the same levels with noise of their own."""
        with torch.no_grad():
            z_t, i, condition, scale = self.noised(batch, draws)
            t, level = self.teacher_levels.to(z_t.device)[i + 1], self.judged(draws, z_t.device)
            drawn = self.frozen(models, z_t, t, condition, scale, role="student").x0
            fake, real = (
                self.features(models, x0, level, condition, draws.normal_like(name, z_t))
                for name, x0 in (("fake", drawn), ("real", self.clean(batch)))
            )
        return judge_apart(models["discriminator"], real, fake)
