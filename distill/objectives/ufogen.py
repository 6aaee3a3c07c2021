"""UFOGen: a diffusion model that draws in one step, taught by noised pairs and by its own reconstructions.

From x_s the generator draws a clean image, which is noised anew to a cleaner level t: there a discriminator compares it with
noised data. Matching the two levels' distributions apart leaves open which x_t goes with which x_s; the reconstruction of x0
ties them together. It is the divergence of the noising steps from the drawn and the true x_t to x_s, so that both losses
together match pairs. As x_t is made from x0 and new noise, the generator learns to draw x0 itself, from any level in one step.

Source: arXiv 2311.09257; that the divergence is one of the noising steps, SIDDMs, arXiv 2306.12511;
continuous levels and the distance of s and t, the authors' repository xuyanwu/SIDDMs-UFOGen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses import transitions
from distill.losses.adversarial import AdversarialLossConfig
from distill.losses.levels import first_clock
from distill.losses.solver_steps import LevelTable
from distill.networks.discriminator import Noised
from distill.objectives.bases.network_judge import NetworkJudge
from distill.objectives.bases.student_config import UnguidedConfig
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import NoiseLevel
from samplers.registry import get_grid


class UfogenConfig(UnguidedConfig, AdversarialLossConfig):
    """steps: of the exported student's sampler. cuts: into so many parts the levels are cut, and t lies one part below s.

    noisiest_share: of the samples that start from pure noise; the others start at any level alike. adversarial_weight,
    reconstruction_weight: of the student's two losses. weight: of the reconstruction at a level, at most max_weight: kl, the
    divergence of the two noising steps from t to s, or any of an error of x0 (`distill.losses.distances.level_weight`).
    """

    steps: int = Field(default=1, gt=0)
    cuts: int = Field(default=4, ge=1)
    noisiest_share: float = Field(default=0.0, ge=0, le=1)
    adversarial_weight: float = Field(default=1.0, gt=0)
    reconstruction_weight: float = Field(default=1.0, ge=0)
    weight: Literal["kl"] | losses.Weight = "kl"
    max_weight: float = Field(default=5.0, gt=0)
    target_ema: None = None  # it has no target


class Pair(NamedTuple):
    """Noised data: clean x0 (B, C, h, w), x_s at the level s (noisier), the level t, and the condition."""

    x0: Tensor
    x_s: Tensor
    s: NoiseLevel
    t: NoiseLevel
    condition: Condition


class UfogenObjective(NetworkJudge):
    """See the module. Roles `student` and `discriminator` train."""

    config: UfogenConfig
    sampler = "lcm"
    source: ClassVar[str] = "arXiv 2311.09257"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.cuts = LevelTable.of(get_grid(config.schedule, self.path, config.cuts, **config.schedule_options))
        self.add_discriminator()

    def pair(self, batch: Batch, draws: Draws) -> Pair:
        """Data at a level s of each sample, and the level t one part of the path below, which has some noise."""
        x0 = self.clean(batch)
        cuts = self.cuts.to(x0.device)
        place = cuts.steps * (1 - draws.uniform("level", device=x0.device).double())  # in (0, cuts]
        place = torch.where(draws.uniform("noisiest", device=x0.device) < self.config.noisiest_share, cuts.steps, place)
        s = self.at(place, cuts)
        t = self.path(torch.maximum(self.at((place - 1).clamp(min=0), cuts).t, first_clock(self.path)))
        x_s = s.mix(x0, draws.normal_like("eps", x0))
        return Pair(x0, x_s, s, t, self.condition(batch, x0.device, draws))

    def at(self, place: Tensor, cuts: LevelTable) -> NoiseLevel:
        """The levels at places (B,), whole numbers being those of the grid."""
        number = place.floor().long().clamp(max=cuts.steps - 1)
        return cuts.between(self.path, number, place - number)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        at = self.pair(batch, draws)
        if phase.name == "discriminator":
            with torch.no_grad():
                x0 = self.predict(unwrap(models["student"]), at.x_s, at.s, at.condition).x0
            real, fake = self.shown("real", at.x0, at, draws), self.shown("fake", x0, at, draws)
            return self.told_apart(models, real, fake, at.condition)
        config = self.config
        x0 = self.predict(models["student"], at.x_s, at.s, at.condition).x0
        fake = self.shown("fake", x0, at, draws)
        adversarial = self.fooling(models, lambda: self.shown("real", at.x0, at, draws), fake, at.condition)
        reconstruction, logged = losses.average(losses.squared(x0, at.x0), self.weight(at))
        total = config.adversarial_weight * adversarial + config.reconstruction_weight * reconstruction
        return total, {"adversarial": adversarial.detach(), **logged}

    def shown(self, name: str, x0: Tensor, at: Pair, draws: Draws) -> Noised:
        """Clean latents as they are judged: at t, with noise of their own."""
        return Noised(at.t.mix(x0, draws.normal_like(name, x0)), at.t)

    def weight(self, at: Pair) -> Tensor:
        """(B,): what a squared error of x0 counts."""
        if self.config.weight == "kl":
            return step_divergence(at.s, at.t).clamp(max=self.config.max_weight)
        return losses.level_weight(self.config.weight, at.s, self.config.max_weight)


def step_divergence(s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """(B,): alpha_s^2 / (2 sigma_{s|t}^2), the Kullback-Leibler divergence of the noising steps to s from two x_t of one noise,
    over the squared difference of their x0."""
    # arXiv 2306.12511: N(r x_t, sigma_{s|t}^2) with r = alpha_s / alpha_t, and x_t = alpha_t x0 + sigma_t eps
    return s.alpha**2 / (2 * transitions.added_noise(t, s) ** 2)
