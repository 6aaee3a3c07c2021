"""Decoupled DMD: the two halves of distribution matching with a guided teacher, each at noise levels of its own.

The guided teacher's score less the critic's is a sum: the teacher's own score less the critic's, which matches distributions,
and what guidance adds to the teacher's score, which turns many steps into few and, alone, overshoots. The first regularises and
is needed at all levels. The second strengthens what is seen at its level: below the level that the student starts from it
has work to do, above it would repeat what is settled.

Source: arXiv 2511.22677, equations 6 and 8, section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.objectives.dmd2 import Compared, DistributionMatchingConfig, DistributionMatchingObjective, how_far
from distill.types import Draws
from samplers.path import NoiseLevel, expand

Schedule = Literal["shared", "full", "constrained", "hybrid"]


class DecoupledMatchingConfig(DistributionMatchingConfig):
    """As DMD2's, and levels: where the halves are noised.

    shared: at one level, which is DMD. full: each at a level of its own, of the whole range. constrained: each at one below the
    level that the student starts from. hybrid: so the guidance, and matching over the whole range, as published.
    """

    levels: Schedule = "hybrid"
    adversarial_weight: float = Field(default=0.0, ge=0)
    discriminator_weight: float = Field(default=0.0, ge=0)


class DecoupledMatchingObjective(DistributionMatchingObjective):
    """See the module."""

    config: DecoupledMatchingConfig
    source = "arXiv 2511.22677"

    def below(self, level: NoiseLevel, draws: Draws) -> NoiseLevel:
        """Levels (B,) brought below those that the student starts from, all of them in proportion."""
        low = self.config.range[0] * self.path.t_noise
        start = self.levels.to(level.t.device)[self.start(draws, level.t.device)].t.clamp(min=low)
        # arXiv 2511.22677, section 4.1: cleaner than what the student is given
        return self.path(low + (level.t - low) * (start - low) / (self.path.t_noise - low))

    def compared(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        level = super().compared(draws, device)
        return self.below(level, draws) if self.config.levels == "constrained" else level

    def trained(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        return super().compared(draws, device)

    def guided_at(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """The levels (B,) at which guidance acts."""
        own = Draws(draws.seed, draws.index, f"{draws.phase} guidance")
        level = super().compared(own, device)
        return level if self.config.levels == "full" else self.below(level, draws)

    def matched(self, models: Mapping[str, nn.Module], seen: Compared, draws: Draws) -> Tensor:
        assert seen.real.cond is not None
        x0, real = seen.x0, seen.real
        far = expand(how_far(x0, real.x0), x0)
        # arXiv 2511.22677, equation 8: matching, then guidance; each over how far the guided teacher's picture is at its level
        matching = (seen.fake - seen.real.cond.x0) / far
        if self.config.levels != "shared":
            level = self.guided_at(draws, x0.device)
            noised = level.mix(x0, draws.normal_like("guidance noise", x0)).detach()
            real = self.teacher_predict(models, noised, level, seen.condition, seen.scale)
            far = expand(how_far(x0, real.x0), x0)
        assert real.cond is not None
        return losses.along(x0, matching - (real.x0 - real.cond.x0) / far)
