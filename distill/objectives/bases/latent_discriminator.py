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

from distill.networks.discriminator import TokenHeads, block_features, hinge_of_features, quarter_blocks
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.parallel.shards import detached_weights
from distill.types import Draws, Role
from gen.nn.registry import Config
from samplers.denoiser import Condition
from samplers.path import NoiseLevel


class LatentDiscriminatorConfig(Config):
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


class LatentDiscriminatorObjective(StudentObjective):
    """What a method with such a discriminator adds to its own: the role `discriminator`, and both networks' losses."""

    config: Any

    def __init__(self, config: StudentConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.blocks, widths = self.judged_blocks(self.config.blocks, quarter_blocks)
        self.roles["discriminator"] = Role(TokenHeads(widths), ema=False)

    def judged(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """The levels (B,) that the discriminator looks at, kept between sigma / alpha = e^-5 and e^5."""
        mean, deviation = self.config.judged
        ratio = mean + deviation * draws.normal("judged").double()
        return self.path.at_logsnr(-ratio.clamp(-5, 5).to(device))

    def features(
        self, models: Mapping[str, nn.Module], x0: Tensor, level: NoiseLevel, condition: Condition, noise: Tensor
    ) -> list[Tensor]:
        """The frozen teacher's tokens for x0 with noise added, differentiable in x0."""
        return block_features(
            self.teacher.denoiser(models["teacher"], self.dtype), level.mix(x0, noise), level, condition, self.blocks
        )

    def with_adversarial_loss(
        self,
        models: Mapping[str, nn.Module],
        x0: Tensor,
        condition: Condition,
        draws: Draws,
        beside: tuple[Tensor, dict[str, Tensor]] | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss for its clean latents x0, with the loss beside it, and what is logged."""
        fake = self.features(models, x0, self.judged(draws, x0.device), condition, draws.normal_like("fake", x0))
        # arXiv 2403.12015, section 3: the generator's half of the hinge loss, on the teacher's features of noised latents
        adversarial = -detached_weights(models["discriminator"])(fake).mean()
        total, logged = self.config.adversarial_weight * adversarial, {"adversarial": adversarial.detach()}
        if beside is None:
            return total, logged
        return self.config.consistency_weight * beside[0] + total, {**beside[1], **logged}

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], drawn: Tensor, real: Tensor, condition: Condition, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss for the student's clean latents and the data's, at the same levels with noise of their
        own."""
        with torch.no_grad():
            level = self.judged(draws, real.device)
            fake, true = (
                self.features(models, x0, level, condition, draws.normal_like(name, real))
                for name, x0 in (("fake", drawn), ("real", real))
            )
        return hinge_of_features(models["discriminator"], true, fake)
