"""Adversarial consistency: a latent consistency model whose pictures must also look real to a discriminator.

A share of the samples starts at the noisiest level, where a consistency model alone is blurred: from there the student must
draw in one step. With consistency_weight 0 the discriminator alone teaches (LADD): teacher.steps then says from how many
levels the student starts, 4 as published.

Sources: the discriminator, latent adversarial diffusion distillation, arXiv 2403.12015; its place beside a consistency loss and
the share of samples at the noisiest level, SANA-Sprint, arXiv 2503.09641, section 3.3. Theirs is the continuous-time
consistency loss (`sana_sprint.py`); here it is that of latent consistency models, arXiv 2310.04378.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.objectives.bases.latent_discriminator import LatentDiscriminatorConfig, LatentDiscriminatorObjective
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.types import Batch, Draws, Phase


class AdversarialConsistencyConfig(LatentConsistencyConfig, LatentDiscriminatorConfig):
    """See both."""

    noisiest_share: float = Field(default=0.5, ge=0, le=1)


class AdversarialConsistencyObjective(LatentDiscriminatorObjective, LatentConsistencyObjective):
    """See the module. Role `discriminator` beside those of latent consistency."""

    config: AdversarialConsistencyConfig
    source: ClassVar[str] = "arXiv 2403.12015, 2503.09641"

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        z_t, i, condition, scale = self.noised(batch, draws)
        t = self.teacher_levels.to(z_t.device)[i + 1]
        if phase.name == "discriminator":
            with torch.no_grad():
                drawn = self.target_predict(models, z_t, t, condition, scale, role="student").x0
            return self.discriminator_loss(models, drawn, self.clean(batch), condition, draws)
        if not self.config.consistency_weight:
            x0 = self.predict(models["student"], z_t, t, condition, scale).x0
            return self.with_adversarial_loss(models, x0, self.clean(batch), condition, draws, None)
        # arXiv 2503.09641, section 3.3: the consistency loss with the adversarial one beside it
        prediction, consistency, logged = self.consistency(models, z_t, i, condition, scale)
        beside = consistency, logged
        return self.with_adversarial_loss(models, prediction.x0, self.clean(batch), condition, draws, beside)
