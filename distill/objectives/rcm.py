"""Score-regularised continuous-time consistency (rCM): sCM, which covers the data, beside distribution matching.

Continuous consistency alone draws the student along the teacher's trajectories and leaves fine detail soft, as errors of the
tangent add up towards clean data. Distribution matching of what the student draws (DMD) repairs that, and alone it would leave
out modes. What it judges is drawn from noise in any number of steps, at levels drawn anew.

Source: arXiv 2510.08431; what it leaves out, its repository NVlabs/rcm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.levels import TimeConfig
from distill.objectives.bases.student_rollout import twofold
from distill.objectives.bases.teacher import Scale
from distill.objectives.dmd2 import DistributionMatchingConfig, DistributionMatchingObjective, matching
from distill.objectives.scm import ContinuousConsistencyConfig, ContinuousConsistencyObjective, Points
from distill.parallel.shards import detached_weights, unwrap
from distill.types import Batch, Draws, Phase
from gen.models.folder import Option
from samplers.denoiser import Condition
from samplers.noise import fold
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, expand


class RegularizedConsistencyConfig(DistributionMatchingConfig, ContinuousConsistencyConfig):
    """regularize_from: the step from which distribution matching takes part, and the critic trains. distribution_weight: of it;
    0.02 is the published weight of 0.01, whose error is not halved. simulate: what is judged has been drawn in 1 to so many
    steps. time, shift: of the levels between these steps and of those at which distributions are compared, their sigma / alpha
    times `shift`. There is no discriminator and, as published, no learned weight of levels unless `adaptive` asks for one.
    `inputs`, `noisiest_share` and `critic_warmup` of `distribution_matching` are not read."""

    distribution_weight: float = Field(default=0.02, gt=0)
    adversarial_weight: float = Field(default=0.0, ge=0, le=0)
    discriminator_weight: float = Field(default=0.0, ge=0, le=0)
    weight: losses.Weight = "snr_plus_one"
    max_weight: float = Field(default=1e4, gt=0)
    time: TimeConfig = TimeConfig(type="log_normal", mean=0.0, std=1.6)
    shift: float = Field(default=1.0, gt=0)
    simulate: int = Field(default=4, ge=1)
    regularize_from: int = Field(default=1000, ge=0)
    warmup: int = Field(default=1000, ge=0)
    adaptive: bool = False
    schedule: str = "karras"
    schedule_options: dict[str, Option] = Field(default={"sigma_min": 0.5, "sigma_max": 80.0})


class RegularizedConsistencyObjective(DistributionMatchingObjective, ContinuousConsistencyObjective):
    """See the module. Roles `student` and `critic` train, each in its phase."""

    config: RegularizedConsistencyConfig
    sampler = "consistency"
    source: ClassVar[str] = "arXiv 2510.08431"

    def clean(self, batch: Batch) -> Tensor:
        """As of any student: consistency is learned on pictures of the data, which prompts alone do not have."""
        return ContinuousConsistencyObjective.clean(self, batch)

    def phases(self, step: int) -> tuple[Phase, ...]:
        trained = [name for name, role in self.roles.items() if role.trains]
        names = [name for name in trained if name != "critic" or step >= self.config.regularize_from]
        return tuple(Phase(name, name) for name in names)

    def pull(self, cos: Tensor, warm: float) -> Tensor:
        """cos(t) sqrt(1 - r^2 sin^2(t)): the whole of it before the second half is there, sCM's cos^2(t) after."""
        return cos * (1 - warm**2 * (1 - cos**2)).sqrt()

    def compared(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        level = super().compared(draws, device, step)
        return at_ratio(self.path, self.config.shift * level.sigma / level.alpha)

    def noise_to(
        self, student: nn.Module, like: Tensor, condition: Condition, scale: Scale, draws: Draws, step: int
    ) -> tuple[Tensor, NoiseLevel]:
        """(z (B, ...), its levels (B,)): what the student has come to before its last step, from noise.

        The number of steps is the same on every process, as each costs a call; levels are drawn anew and never rise.
        """
        top = self.levels.to(like.device)[torch.full((len(like),), self.levels.steps, device=like.device)]
        level, z = top, expand(top.sigma, like) * draws.normal_like("eps", like)
        chance = torch.Generator().manual_seed(fold(draws.seed, step, draws.phase, "simulated steps"))
        for number in range(int(torch.randint(self.config.simulate, (1,), generator=chance))):
            drawn = Draws(draws.seed, draws.index, f"{draws.phase} {number}")
            with torch.no_grad():
                x0 = self.predict(unwrap(student), z, level, condition, scale).x0
            t = torch.minimum(self.compared(drawn, like.device).t.to(level.t), level.t)
            level = self.path(t)
            z = level.mix(x0, drawn.normal_like("eps", like))
        return z, level

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "weight":
            return ContinuousConsistencyObjective.loss(self, phase, models, batch, draws, step)
        points = self.points(batch, Draws(draws.seed, draws.index, "student"))
        x0, condition, scale = points.x0, points.condition, points.scale
        if phase.name == "critic":
            with torch.no_grad():
                network = unwrap(models["student"])
                z, start = self.noise_to(network, x0, condition, scale, draws, step)
                drawn = self.predict(network, z, start, condition, scale).x0
            level = self.compared(draws, x0.device)
            x_t = level.mix(drawn, draws.normal_like("noise", x0))
            return self.denoising(self.judge(models["critic"], x_t, level, condition, scale)[0].x0, drawn, level)
        if step < self.config.regularize_from:
            return self.consistency(models, points, self.velocity(models, points), step)
        z, start = self.noise_to(models["student"], x0, condition, scale, draws, step)
        said, drawn = self.both(models["student"], points, z, start)
        # arXiv 2510.08431: L_sCM + lambda L_DMD
        total, logged = self.consistency(models, points, said, step)
        level = self.compared(draws, x0.device)
        x_t = level.mix(drawn, draws.normal_like("noise", x0))
        with torch.no_grad():
            fake, _ = self.judge(detached_weights(models["critic"]), x_t, level, condition, scale)
            real = self.teacher_predict(models, x_t, level, condition, scale)
        logged["score_gap"] = (fake.x0 - real.x0).abs().mean()
        return total + self.config.distribution_weight * matching(drawn, fake.x0, real.x0).mean(), logged

    def both(self, student: nn.Module, points: Points, z: Tensor, start: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(sd F at the points, x0 of z at its levels), in one call of the student."""
        cos, sin = points.angle.cos(), points.angle.sin()
        level = at_ratio(self.path, self.sd * sin / cos)
        x = torch.cat([expand(level.alpha / cos, z) * self.noised(points), z])
        levels = self.path(torch.cat([level.t, start.t.to(level.t)]))
        prediction = self.predict(student, x, levels, points.condition.map(twofold), twofold(points.scale))
        return prediction.read((-twofold(sin), self.sd * twofold(cos))).chunk(2)[0], prediction.x0.chunk(2)[1]
