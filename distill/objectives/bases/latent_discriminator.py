"""A discriminator in latent space, for methods of several kinds: heads on the features of the frozen teacher.

The student's clean latents are noised again and judged beside noised latents of the data with the same captions, at levels of
their own distribution. Source: latent adversarial diffusion distillation (LADD), arXiv 2403.12015, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig
from distill.networks.discriminator import Noised, quarter_blocks
from distill.objectives.bases.feature_judge import FeatureJudge
from distill.objectives.bases.student_config import StudentConfig
from distill.types import Draws
from samplers.denoiser import Condition
from samplers.path import NoiseLevel


class LatentDiscriminatorConfig(AdversarialLossConfig):
    """adversarial_weight: of the student's share of the hinge loss, -D. consistency_weight: of the loss beside it; 0 is the
    adversarial loss alone (LADD), which asks the teacher for features and for nothing else. noisiest_share: of the samples
    that start at the noisiest level, in both losses. judged: mean and deviation of the log of sigma / alpha at the levels that
    the discriminator looks at, normally distributed (on a rectified flow, the logit of t). blocks: those of the teacher whose
    tokens are judged (none given: a quarter, half and three quarters of the way through, and the last; of a U-Net the levels
    on the way down and the middle)."""

    adversarial_weight: float = Field(default=0.5, ge=0)
    consistency_weight: float = Field(default=1.0, ge=0)
    noisiest_share: float = Field(default=0.5, ge=0, le=1)
    judged: tuple[float, float] = (0.0, 1.0)
    blocks: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _teaches(self) -> LatentDiscriminatorConfig:
        if not self.adversarial_weight and not self.consistency_weight:
            raise ValueError("adversarial_weight and consistency_weight are both 0, so nothing is learned; give one of them")
        return self


class LatentDiscriminatorObjective(FeatureJudge):
    """What a method with such a discriminator adds to its own: the role `discriminator`, and both networks' losses."""

    config: Any

    def __init__(self, config: StudentConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.add_discriminator(quarter_blocks)

    def judged(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """The levels (B,) that the discriminator looks at, kept between sigma / alpha = e^-5 and e^5."""
        mean, deviation = self.config.judged
        ratio = mean + deviation * draws.normal("judged").double()
        return self.path.at_logsnr(-ratio.clamp(-5, 5).to(device))

    def shown(self, name: str, x0: Tensor, draws: Draws) -> Noised:
        """Clean latents as they are judged: at the samples' levels, with noise of their own."""
        level = self.judged(draws, x0.device)
        return Noised(level.mix(x0, draws.normal_like(name, x0)), level)

    def with_adversarial_loss(
        self,
        models: Mapping[str, nn.Module],
        x0: Tensor,
        real: Tensor,
        condition: Condition,
        draws: Draws,
        beside: tuple[Tensor, dict[str, Tensor]] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss for its clean latents x0 (and, in pairs, the data's), with the loss beside it, and what is
        logged."""
        # arXiv 2403.12015, section 3: the generator's half of the hinge loss, on the teacher's features of noised latents
        adversarial = self.fooling(models, lambda: self.shown("real", real, draws), self.shown("fake", x0, draws), condition)
        total, logged = self.config.adversarial_weight * adversarial, {"adversarial": adversarial.detach()}
        if beside is None:
            return total, logged
        return self.config.consistency_weight * beside[0] + total, {**beside[1], **logged}

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], drawn: Tensor, real: Tensor, condition: Condition, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss for the student's clean latents and the data's, at the same levels with noise of their
        own."""
        return self.told_apart(models, self.shown("real", real, draws), self.shown("fake", drawn, draws), condition)
