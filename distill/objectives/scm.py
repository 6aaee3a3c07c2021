"""Continuous-time consistency models (sCM, arXiv 2410.11081): the limit of infinitely close levels, trained with tangents.

On TrigFlow, x_t = cos(t) x0 + sin(t) sd z with t from 0 to pi / 2, whose noise ratio is sd tan(t). The consistency function is
f = cos(t) x - sin(t) sd F(x / sd, t), so that F is the network's velocity over sd; a network on any path is read as F exactly,
since F is one linear reading of what it predicts, and f is its x0. sd is the standard deviation of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.consistency_schedules import check_reach
from distill.losses.jvp import How, jvp, prepare_jvp
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase, Role
from gen.models.folder import Option
from gen.nn.backbones.blocks import TimeMLP, timestep_embedding
from samplers.denoiser import Condition
from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction

FREQUENCIES = 64


class ContinuousConsistencyConfig(StudentConfig):
    """mode: where the trajectory's direction comes from, the teacher (sCD) or the picture and its noise (sCT).

    mean, std: of log(sigma / alpha), up to sigma_max. sigma_data: sd; None: the teacher's for edm networks, 1 for others, whose
    data are scaled to unit variance. warmup: steps over which the tangent's second half comes in. normalisation: c of
    g / (|g| + c), or null for none. adaptive: learn a weight of the levels, of which `share` of each batch is used.
    derivative: `distill.losses.jvp`.
    """

    mode: Literal["distillation", "training"] = "distillation"
    mean: float = -0.8
    std: float = Field(default=1.6, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    sigma_data: float | None = Field(default=None, gt=0)
    warmup: int = Field(default=10_000, ge=0)
    normalisation: float | None = Field(default=0.1, gt=0)
    adaptive: bool = True
    share: float = Field(default=0.25, gt=0, le=1)
    derivative: How = "forward"
    schedule: str = "karras"
    schedule_options: dict[str, Option] = Field(default={"sigma_min": 0.5, "sigma_max": 80.0})


class Points(NamedTuple):
    """Samples on their trajectories: clean (B, C, h, w), the noise, the angle t (B,), the condition, the guidance scale."""

    x0: Tensor
    z: Tensor
    angle: Tensor
    condition: Condition
    scale: Scale

    def first(self, count: int) -> Points:
        """The first so many of them."""
        scale = self.scale if isinstance(self.scale, float | int) else self.scale[:count]
        return Points(self.x0[:count], self.z[:count], self.angle[:count], self.condition[:count], scale)


class LevelWeight(nn.Module):
    """w(t), one number per level, 0 at the start: the log of a level's weight. arXiv 2410.11081, section 4.2."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = TimeMLP(FREQUENCIES, 1, FREQUENCIES)
        first, last = self.mlp[0], self.mlp[2]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        g = torch.Generator().manual_seed(0)
        with torch.no_grad():
            first.weight.copy_(torch.randn(first.weight.shape, generator=g) / FREQUENCIES**0.5)
            first.bias.zero_()
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, angle: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        weight = self.mlp.get_parameter("0.weight")
        features = timestep_embedding(1000 * angle, FREQUENCIES).to(weight.dtype)
        return self.mlp(features)[:, 0].float()


class ContinuousConsistencyObjective(StudentObjective):
    sampler = "consistency"
    source = "arXiv 2410.11081"
    config: ContinuousConsistencyConfig

    def __init__(self, config: ContinuousConsistencyConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        check_reach(self.path, config.sigma_max)
        self.sd = config.sigma_data or (self.model.sigma_data if self.model.prediction == "edm" else 1.0)
        for role in ("student", "target"):
            if role in self.roles:
                dtype = self.dtype if config.lora is not None else None
                self.derivative = prepare_jvp(self.roles[role].network, config.derivative, dtype)
        if config.adaptive:
            self.roles["weight"] = Role(LevelWeight(), ema=False)

    def angles(self, draws: Draws, device: torch.device) -> Tensor:
        """t = arctan(exp(tau) / sd) with tau ~ N(mean, std^2), (B,) float64. Algorithm 1."""
        tau = self.config.mean + self.config.std * draws.normal("level", device=device).double()
        return torch.atan(tau.exp().clamp(max=self.config.sigma_max) / self.sd)

    def field(self, predict, x: Tensor, angle: Tensor) -> Tensor:
        """sd F (B, ...) at x_t of angle t (B,), where predict(x, level) asks a network."""
        cos, sin = angle.cos(), angle.sin()
        level = at_ratio(self.path, self.sd * sin / cos)
        prediction = predict(expand(level.alpha / cos, x) * x, level)
        return prediction.read((-sin, self.sd * cos))

    def tangent(
        self,
        models: Mapping[str, nn.Module],
        x0: Tensor,
        z: Tensor,
        angle: Tensor,
        condition: Condition,
        scale: Scale,
        step: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x_t, sd F of the target, g): which way F ought to move at x_t. Algorithm 1; equation 8 for its second half."""
        config = self.config
        cos, sin = (expand(v, x0) for v in (angle.cos(), angle.sin()))
        x = cos * x0 + sin * self.sd * z
        if config.mode == "distillation":
            rate = self.field(lambda x, level: self.teacher_predict(models, x, level, condition, scale), x, angle)
        else:
            rate = cos * self.sd * z - sin * x0
        network = unwrap(models["target" if "target" in self.roles else "student"])

        def student(x: Tensor, angle: Tensor) -> Tensor:
            return self.field(lambda x, level: self.predict(network, x, level, condition, scale), x, angle)

        # the derivative times cos(t) sin(t), taken inside: it is large where that factor is small
        both = angle.cos() * angle.sin()
        said, change = jvp(student, (x, angle), (expand(both, x) * rate, both), self.derivative)
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        # arXiv 2410.11081, Algorithm 1: g = -cos^2(t) (sd F - dx/dt) - r cos(t) sin(t) (x + sd dF/dt)
        g = -self.pull(cos, warm) * (said - rate) - warm * (cos * sin * x + change)
        if config.normalisation is not None:
            # Algorithm 1: tangent normalisation, g / (|g| + c)
            g = g / (expand(g.flatten(1).norm(dim=1), g) + config.normalisation)
        return x, said, g

    def pull(self, cos: Tensor, warm: float) -> Tensor:
        """What the tangent's first half counts, which draws F to dx/dt. warm: what the second does, in [0, 1]."""
        return cos**2

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        points = self.points(batch, Draws(draws.seed, draws.index, "student"))  # both phases see the same ones
        if phase.name == "weight":
            points = points.first(math.ceil(self.config.share * len(points.x0)))
            *_, g = self.tangent(models, *points, step)
            error = g.flatten(1).square().mean(1)  # in value the student is its target, and its error that of g alone
            weight = models["weight"](points.angle)
            return (weight.exp() * error - weight).mean(), {}
        return self.consistency(models, points, self.velocity(models, points), step)

    def points(self, batch: Batch, draws: Draws) -> Points:
        """Where each sample of a batch is on its trajectory."""
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        return Points(x0, draws.normal_like("eps", x0), self.angles(draws, x0.device), condition, scale)

    def noised(self, points: Points) -> Tensor:
        """x_t = cos(t) x0 + sin(t) sd z."""
        cos, sin = (expand(v, points.x0) for v in (points.angle.cos(), points.angle.sin()))
        return cos * points.x0 + sin * self.sd * points.z

    def velocity(self, models: Mapping[str, nn.Module], points: Points, trains: bool = True) -> Tensor:
        """sd F of the student at its points."""
        network = models["student"] if trains else unwrap(models["student"])

        def student(x: Tensor, level: NoiseLevel) -> Prediction:
            return self.predict(network, x, level, points.condition, points.scale)

        return self.field(student, self.noised(points), points.angle)

    def drawn_from(self, points: Points, velocity: Tensor) -> Tensor:
        """x0 = cos(t) x_t - sin(t) sd F, what the consistency function says."""
        cos, sin = (expand(v, points.x0) for v in (points.angle.cos(), points.angle.sin()))
        return (cos * self.noised(points) - sin * velocity).to(points.x0)

    def consistency(
        self, models: Mapping[str, nn.Module], points: Points, said: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of what the student says at its points (`velocity`)."""
        _, target, g = self.tangent(models, *points, step)
        error = ((said - target) / self.sd - g).flatten(1).square().mean(1)
        weight = unwrap(models["weight"])(points.angle).detach().exp() if self.config.adaptive else 1.0
        # Algorithm 1: e^w / D |F_theta - F_theta^- - g|^2, and - w in the weight's own phase
        return (weight * error).mean(), {"tangent": g.flatten(1).norm(dim=1).mean()}
