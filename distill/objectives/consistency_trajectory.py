"""Consistency trajectory models (CTM): from any level to any cleaner one, with a network that is told both.

G(x_t, t, s) = s/t x_t + (1 - s/t) g(x_t, t, s) on noise ratios, which is the DDIM step with g as the clean image. The student's
G(x_t, t, s) is compared with its average's G(x_u, u, s), where the teacher's solver went from t to u; both are first taken to
clean data by the average, so that all s count alike. Where s = t, g is a denoiser: it learns that too, which is what makes long
jumps fit short ones. A discriminator on the frozen teacher's features (the paper's looks at pictures) sharpens both.

Source: arXiv 2310.02279, section 3; what it leaves out (the number of the solver's steps, the bounds of the weights),
its repository sony/ctm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.balance import gradient_ratio
from distill.losses.consistency_schedules import pick, ratios
from distill.losses.levels import draw_index
from distill.losses.solver_steps import ddim
from distill.objectives.bases.latent_discriminator import LatentDiscriminatorConfig, LatentDiscriminatorObjective
from distill.objectives.bases.student_rollout import twofold
from distill.objectives.bases.teacher import Scale, TeacherConfig
from distill.objectives.consistency_distillation import ConsistencyConfig, DiscreteConsistency
from distill.objectives.mean_flow import check_told_end, with_target_time
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.noise import fold
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel
from samplers.prediction import Prediction


class ConsistencyTrajectoryConfig(ConsistencyConfig, LatentDiscriminatorConfig):
    """levels: N, how many noise ratios the trajectory is cut into. solver_steps: at most so many of them the teacher's solver
    goes; how many is drawn for each step of the run, k as often as its size.

    denoising_weight: of the loss of g(x_t, t, t). mean, std: of log(sigma / alpha) in it, for half of the samples; the others
    are uniform on the grid. balance: multiply both other losses by what makes their gradients as large as the first one's,
    the discriminator's within 0.01 and 10. adversarial_start: the step from which the discriminator takes part.
    gamma: of the exported student's sampler.
    """

    teacher: TeacherConfig = TeacherConfig(solver="heun")
    target_ema: float = Field(default=0.999, ge=0, lt=1)
    levels: int = Field(default=18, ge=2)
    solver_steps: int = Field(default=4, ge=1)
    denoising_weight: float = Field(default=1.0, ge=0)
    mean: float = -1.2
    std: float = Field(default=1.2, gt=0)
    balance: bool = True
    adversarial_weight: float = Field(default=1.0, ge=0)
    adversarial_start: int = Field(default=0, ge=0)
    gamma: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> ConsistencyTrajectoryConfig:
        if self.solver_steps >= self.levels:
            raise ValueError(
                f"solver_steps {self.solver_steps} must be below levels {self.levels}, which they are steps between"
            )
        if not self.consistency_weight:
            raise ValueError("consistency_weight 0 leaves nothing to balance the other losses with; give a number above 0")
        return self


class Trajectories(NamedTuple):
    """Samples on their trajectories: clean (B, C, h, w), at t, the levels t and s (B,), t's place on the grid, how many steps
    of it the solver goes from there, and the condition with its guidance scale."""

    x0: Tensor
    x_t: Tensor
    t: NoiseLevel
    s: NoiseLevel
    place: Tensor
    gone: int
    condition: Condition
    scale: Scale


class ConsistencyTrajectoryObjective(LatentDiscriminatorObjective, DiscreteConsistency):
    """See the module. Role `discriminator` beside the student's, where it has weight."""

    config: ConsistencyTrajectoryConfig
    sampler = "flow_map"
    scalars = ("target_time",)
    source: ClassVar[str] = "arXiv 2310.02279"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.sampler_options = {"gamma": config.gamma}
        check_told_end(self)
        if not config.adversarial_weight:
            self.roles.pop("discriminator")

    def phases(self, step: int) -> tuple[Phase, ...]:
        student = Phase("student", "student")
        return (student, Phase("discriminator", "discriminator")) if self.judges(step) else (student,)

    def judges(self, step: int) -> bool:
        return "discriminator" in self.roles and step >= self.config.adversarial_start

    # ---- the trajectory function ----

    def end(self, network: nn.Module, x: Tensor, t: NoiseLevel, s: NoiseLevel, condition: Condition, scale: Scale) -> Tensor:
        """G(x_t, t, s), differentiable."""
        return ddim(self.predict(network, x, t, with_target_time(condition, s.t), scale).x0, x, t, s)

    def cleanest(self, like: NoiseLevel) -> NoiseLevel:
        return at_ratio(self.path, torch.full_like(like.t, self.config.sigma_min))

    def count(self, seed: int, step: int) -> int:
        """How many steps of the grid the teacher's solver goes: the same on every process, as each costs a call."""
        chance = torch.rand(1, generator=torch.Generator().manual_seed(fold(seed, step, "solver steps")))
        size = torch.arange(1, self.config.solver_steps + 1, dtype=torch.float64)
        return 1 + int(pick(size / size.sum(), chance))

    def trajectories(self, batch: Batch, draws: Draws, step: int) -> Trajectories:
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        grid, count = self.grid(x0.device), self.count(draws.seed, step)
        index = count + draw_index(draws, "level", len(grid) - count, x0.device)
        end = (draws.uniform("end", device=x0.device).double() * (index - count + 1)).long().clamp(max=index - count)
        t, s = at_ratio(self.path, grid[index]), at_ratio(self.path, grid[end])
        x_t = t.mix(x0, draws.normal_like("eps", x0))
        return Trajectories(x0, x_t, t, s, index, count, condition, scale)

    def grid(self, device: torch.device) -> Tensor:
        config = self.config
        return ratios(config.levels, config.sigma_min, config.sigma_max, config.rho).to(device)

    @torch.no_grad()
    def target(self, models: Mapping[str, nn.Module], at: Trajectories) -> Tensor:
        """The average's clean image of what the teacher's solver makes of x_t."""
        grid, x, level = self.grid(at.x_t.device), at.x_t, at.t
        for taken in range(1, at.gone + 1):
            below = at_ratio(self.path, grid[at.place - taken])
            x, level = self.teacher_step(models, x, level, below, at.condition, at.scale), below
        network = unwrap(models["target"])
        jumped = self.end(network, x, level, at.s, at.condition, at.scale)
        return self.end(network, jumped, at.s, self.cleanest(at.s), at.condition, at.scale)

    # ---- losses ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        at = self.trajectories(batch, Draws(draws.seed, draws.index, "student"), step)
        if phase.name == "discriminator":
            with torch.no_grad():
                jumped = self.end(unwrap(models["student"]), at.x_t, at.t, at.s, at.condition, at.scale)
                drawn = self.clean_end(models, jumped, at)
            return self.discriminator_loss(models, drawn, at.x0, at.condition, draws)
        sigma = self.denoised_level(draws, at)
        prediction = self.both(models["student"], at, sigma, draws)
        # wrappers have hooks on what a network returns, which a gradient that stops here does not call
        prediction = replace(prediction, raw=prediction.raw.clone())
        jump, denoised = prediction.x0.chunk(2)
        estimate = self.clean_end(models, ddim(jump, at.x_t, at.t, at.s), at)
        error = self.distance(estimate, self.target(models, at)).mean()  # arXiv 2310.02279: the soft consistency loss
        total, logged = self.config.consistency_weight * error, {"error": error.detach()}
        if self.config.denoising_weight:
            weight = (sigma.alpha / sigma.sigma) ** 2 + self.model.sigma_data**-2
            denoising = losses.average(losses.squared(denoised, at.x0), weight)[0]  # of denoising
            ratio = gradient_ratio(error, denoising, prediction.raw) if self.config.balance else 1.0
            total = total + self.config.denoising_weight * ratio * denoising
            logged["denoising"] = denoising.detach()
        if self.judges(step):
            adversarial, found = self.with_adversarial_loss(models, estimate, at.x0, at.condition, draws, None)
            if self.config.balance:  # `adversarial` has its weight inside, which is not to be balanced away
                plain = adversarial / self.config.adversarial_weight
                adversarial = gradient_ratio(error, plain, prediction.raw, 0.01, 10.0) * adversarial
            total, logged = total + adversarial, {**logged, **found}
        return total, logged

    def clean_end(self, models: Mapping[str, nn.Module], x_s: Tensor, at: Trajectories) -> Tensor:
        """What the average makes of x_s, differentiable in it."""
        return self.end(models["target"], x_s, at.s, self.cleanest(at.s), at.condition, at.scale)

    def denoised_level(self, draws: Draws, at: Trajectories) -> NoiseLevel:
        """The levels (B,) of the denoising loss: half of them log-normal, half uniform on the grid's scale."""
        config, device = self.config, at.x0.device
        normal = (config.mean + config.std * draws.normal("denoised level", device=device).double()).exp()
        share = draws.uniform("denoised share", device=device).double()
        low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
        uniform = (low + share * (high - low)) ** config.rho
        half = draws.uniform("denoised half", device=device) < 0.5
        return at_ratio(self.path, torch.where(half, normal, uniform).clamp(config.sigma_min, config.sigma_max))

    def both(self, student: nn.Module, at: Trajectories, sigma: NoiseLevel, draws: Draws) -> Prediction:
        """The student at (x_t, t, s) and, beside it, as a denoiser at (x_sigma, sigma, sigma), in one call."""
        x_sigma = sigma.mix(at.x0, draws.normal_like("denoised eps", at.x0))
        x, level = torch.cat([at.x_t, x_sigma]), self.path(torch.cat([at.t.t, sigma.t]))
        told = with_target_time(at.condition.map(twofold), torch.cat([at.s.t, sigma.t]))
        return self.predict(student, x, level, told, twofold(at.scale))
