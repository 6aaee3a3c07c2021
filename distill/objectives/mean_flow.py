"""MeanFlow (arXiv 2505.13447): the mean velocity of a whole step, learned from its own derivative.

u(x_t, r, t) is the mean of the velocity v over the trajectory from t to r, and x_r = x_t - (t - r) u. Differentiating
(t - r) u along the trajectory gives u = v - (t - r) du/dt, a target that needs no teacher and no simulation. The network is
given r (`scalars: [target_time]` in its config); where r = t, u is v, which is how a trained flow starts as a MeanFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.jvp import How, jvp, prepare_jvp
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase, unlabelled
from samplers.denoiser import Condition
from samplers.path import RectifiedFlow, expand


class MeanFlowConfig(StudentConfig):
    """mode: v is that of the picture and its noise, or the teacher's under its guidance. mean, std: of the logit of both times.
    different: the share of samples with r < t. power, floor: the error is divided by (|error|^2 + floor)^power.

    omega, kappa: guidance inside, in training: v <- omega v + kappa u(t, t | c) + (1 - omega - kappa) u(t, t | null), of
    effective scale omega / (1 - kappa). drop_label: the share of samples without condition, captions' too, whose v stays as it
    is. guided: (low, high) of t, between which it acts. min_time: of t, where a network that predicts x0 says little about the
    velocity.
    """

    mode: Literal["training", "distillation"] = "training"
    mean: float = -0.4
    std: float = Field(default=1.0, gt=0)
    different: float = Field(default=0.25, ge=0, le=1)
    power: float = Field(default=1.0, ge=0)
    floor: float = Field(default=1e-3, gt=0)
    omega: float = Field(default=1.0, gt=0)
    kappa: float = Field(default=0.0, ge=0, lt=1)
    guided: tuple[float, float] = (0.0, 1.0)
    min_time: float = Field(default=0.001, ge=0, lt=1)
    derivative: How = "forward"
    steps: int = Field(default=1, gt=0)


class MeanFlowObjective(StudentObjective):
    sampler = "flow_map"
    scalars = ("target_time",)
    source = "arXiv 2505.13447"
    config: MeanFlowConfig

    def __init__(self, config: MeanFlowConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        check_flow_map(self)
        self.derivative = prepare_jvp(self.roles["student"].network, config.derivative)

    def times(self, draws: Draws, device: torch.device) -> tuple[Tensor, Tensor]:
        """(r, t), (B,) float64, r <= t."""
        config = self.config
        both = draws.normal("times", (2,), device).double()
        low, high = torch.sigmoid(config.mean + config.std * both).clamp(min=config.min_time).sort(1).values.unbind(1)
        same = draws.uniform("different", device=device) >= config.different
        return torch.where(same, high, low), high

    def mean_velocity(self, network: nn.Module, x: Tensor, r: Tensor, t: Tensor, condition: Condition, scale: Scale) -> Tensor:
        """u(x_t, r, t) (B, C, H, W)."""
        return self.predict(network, x, self.path(t), with_target_time(condition, r), scale).flow(self.path)

    @torch.no_grad()
    def velocity(self, models, x0: Tensor, eps: Tensor, x: Tensor, t: Tensor, condition: Condition, scale: Scale, null: Tensor):
        """v at x_t; null (B,) says which samples have no condition."""
        config = self.config
        if config.mode == "distillation":
            return self.teacher_predict(models, x, self.path(t), condition, scale).flow(self.path)
        v = eps - x0
        if config.omega == 1 and config.kappa == 0:
            return v
        network = unwrap(models["student"])
        blank = self.mean_velocity(network, x, t, t, condition.null(), scale)
        guided = config.omega * v + (1 - config.omega - config.kappa) * blank
        if config.kappa:
            guided = guided + config.kappa * self.mean_velocity(network, x, t, t, condition, scale)
        low, high = config.guided
        plain = null | (t < low) | (t > high)
        return torch.where(expand(plain, x).bool(), v, guided)

    def dropped_condition(self, batch: Batch, draws: Draws, device: torch.device) -> tuple[Condition, Tensor]:
        """(the condition, which samples (B,) have none), by the data or by drop_label."""
        condition = self.condition(batch, device, draws)
        if condition.tokens is None:
            if condition.label is None:
                return condition, torch.ones(len(batch), dtype=torch.bool, device=device)
            return condition, condition.label < 0
        null = torch.tensor([not caption for caption in batch.captions or ()], device=device)
        if self.config.mode == "training":
            dropped = unlabelled(batch, self.config.drop_label, draws).to(device)
            condition, null = select(dropped, condition.null(), condition), null | dropped
        return condition, null

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        (condition, null), scale = self.dropped_condition(batch, draws, x0.device), self.scale(draws, x0.device)
        r, t = self.times(draws, x0.device)
        eps = draws.normal_like("eps", x0)
        x = self.path(t).mix(x0, eps)
        v = self.velocity(models, x0, eps, x, t, condition, scale, null)
        target = self.target(models, x, v, r, t, condition, scale, step)
        u = self.mean_velocity(models["student"], x, r, t, condition, scale)
        # arXiv 2505.13447, equation 9
        error = (u - target).flatten(1).square().sum(1)
        weight = self.weight(error.detach(), r, t, step)
        return (weight * error).mean(), {"error": error.detach().mean() / x0[0].numel()}

    def target(
        self, models, x: Tensor, v: Tensor, r: Tensor, t: Tensor, condition: Condition, scale: Scale, step: int
    ) -> Tensor:
        """What u(x_t, r, t) is to be (B, C, H, W), without gradients."""
        return v - expand(t - r, x) * self.change(models, x, v, r, t, condition, scale)  # equation 10

    def change(self, models, x: Tensor, direction: Tensor, r: Tensor, t: Tensor, condition: Condition, scale: Scale) -> Tensor:
        """du(x_t, r, t)/dt where x moves in a direction (B, C, H, W) and r stays, without gradients."""
        network = unwrap(models["student"])

        def mean_velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.mean_velocity(network, x, r, t, condition, scale)

        return jvp(mean_velocity, (x, t), (direction, torch.ones_like(t)), self.derivative)[1]

    def weight(self, error: Tensor, r: Tensor, t: Tensor, step: int) -> Tensor:
        """Of every sample's squared error (B,)."""
        return (error + self.config.floor) ** -self.config.power  # equation 22


def with_target_time(condition: Condition, time: Tensor) -> Condition:
    """The condition with the clock of a second level."""
    return replace(condition, extra={**condition.extra, "target_time": time})


def select(rows: Tensor, yes: Condition, no: Condition) -> Condition:
    """Row by row one condition or the other; both hold the same inputs."""

    def pick(name: str):
        a, b = getattr(yes, name), getattr(no, name)
        return None if a is None else torch.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return replace(no, **{name: pick(name) for name in ("label", "tokens", "mask", "pooled")})


def check_flow_map(objective: StudentObjective) -> None:
    """ValueError unless the path is straight and the student's network receives a second time."""
    if not isinstance(objective.path, RectifiedFlow):
        raise ValueError(
            f"{type(objective).__name__.removesuffix('Objective')} is for rectified flows, and the teacher's path is "
            f"{type(objective.path).__name__}: give a teacher of that path."
        )
    check_told_end(objective)


def check_told_end(objective: StudentObjective) -> None:
    """ValueError unless the student's network receives a second time."""
    network = objective.roles["student"].network
    if hasattr(network, "config") and "target_time" not in (getattr(network.config, "scalars", None) or ()):
        raise ValueError(
            "The student's network must receive where a step ends: set network.scalars to [target_time] (a LoRA cannot be)."
        )
