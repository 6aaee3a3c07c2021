"""SANA-Sprint's pair: a continuous-time consistency model (sCM) whose pictures must also look real to a discriminator (LADD).

A share of the samples starts at the noisiest level, in both losses. With consistency_weight 0 the discriminator alone teaches.

Source: SANA-Sprint, arXiv 2503.09641, sections 3.2 and 3.3; weights 1 and 0.5, half of the samples at the noisiest level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.objectives.bases.latent_discriminator import LatentDiscriminatorConfig, LatentDiscriminatorObjective
from distill.objectives.scm import ContinuousConsistencyConfig, ContinuousConsistencyObjective
from distill.types import Batch, Draws, Phase


class AdversarialContinuousConfig(ContinuousConsistencyConfig, LatentDiscriminatorConfig):
    """See both."""


class AdversarialContinuousObjective(LatentDiscriminatorObjective, ContinuousConsistencyObjective):
    """See the module. Role `discriminator` beside those of continuous consistency."""

    config: AdversarialContinuousConfig
    source: ClassVar[str] = "arXiv 2503.09641"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        if not config.consistency_weight:
            self.roles.pop("weight", None)

    def angles(self, draws: Draws, device: torch.device) -> Tensor:
        """As for the consistency loss, but of a share of the samples the noisiest."""
        drawn = super().angles(draws, device)
        # arXiv 2503.09641, section 3.3: a share of the samples at the noisiest level
        noisiest = draws.uniform("noisiest", device=device) < self.config.noisiest_share
        return torch.where(noisiest, torch.atan(torch.full_like(drawn, self.config.sigma_max / self.sd)), drawn)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "weight":
            return super().loss(phase, models, batch, draws, step)
        points = self.points(batch, Draws(draws.seed, draws.index, "student"))
        if phase.name == "discriminator":
            with torch.no_grad():
                drawn = self.drawn_from(points, self.velocity(models, points, trains=False))
            return self.discriminator_loss(models, drawn, points.x0, points.condition, draws)
        velocity = self.velocity(models, points)
        beside = self.consistency(models, points, velocity, step) if self.config.consistency_weight else None
        drawn = self.drawn_from(points, velocity)
        return self.with_adversarial_loss(models, drawn, points.x0, points.condition, draws, beside)
