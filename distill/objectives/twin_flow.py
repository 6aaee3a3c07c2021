"""TwinFlow: one network that knows the flow of the data and, at negative times, that of what it draws itself.

Three losses train it together. It learns the mean velocity of any step by its own difference quotient (RCGM). At negative times
it learns the flow of its own one-step pictures, from noise to them. And the difference of the two flows, at a noised picture of
its own, says where one-step pictures differ from the data, as in distribution matching, but with no critic and no discriminator
beside. The network is told a second time, the end of a step.

Source: arXiv 2512.05150, section 3; what it leaves out, its repository inclusionAI/TwinFlow. There a batch is divided among the
losses, here every sample takes part in each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale
from distill.objectives.mean_flow import check_flow_map, with_target_time
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition, Context
from samplers.path import expand


class TwinFlowConfig(StudentConfig):
    """mode: the velocity that steps begin with is that of the picture and its noise, or the teacher's under its guidance.
    enhance: in training, how much of the average's difference with and without condition is added to it.

    one_step, near: shares of the samples whose step is the whole path, and whose step is at most a twentieth of its time.
    order: in how many parts the rest of a step is gone by the average, after a first one of length `difference`. limit: of the
    corrections' numbers. fake_weight, matching_weight: of the two other losses. robust: c of the error's weight.
    """

    mode: Literal["training", "distillation"] = "training"
    enhance: float = Field(default=0.5, ge=0)
    target_ema: float = Field(default=0.99, ge=0, lt=1)
    one_step: float = Field(default=0.33, ge=0, le=1)
    near: float = Field(default=0.33, ge=0, le=1)
    order: int = Field(default=2, ge=1)
    difference: float = Field(default=0.01, gt=0, lt=0.5)
    limit: float = Field(default=1.0, gt=0)
    fake_weight: float = Field(default=1.0, ge=0)
    matching_weight: float = Field(default=0.5, ge=0)
    robust: float = Field(default=1e-3, gt=0)
    min_time: float = Field(default=0.01, gt=0, lt=1)
    steps: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _shares(self) -> TwinFlowConfig:
        if self.one_step + self.near > 1:
            raise ValueError(
                f"one_step {self.one_step} and near {self.near} are shares of the samples: give at most 1 together"
            )
        return self


class TwinFlowObjective(StudentObjective):
    """See the module."""

    config: TwinFlowConfig
    sampler = "flow_map"
    scalars = ("target_time",)
    source: ClassVar[str] = "arXiv 2512.05150"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        check_flow_map(self)

    # ---- the two flows ----

    def velocity(
        self,
        network: nn.Module,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        condition: Condition,
        scale: Scale,
        fake: Tensor | None = None,
    ) -> Tensor:
        """F (B, ...): the mean velocity of the step from t to s; of the rows that are `fake` (B,) the network's own pictures',
        which it is asked for by both times with a minus."""

        def asked(x: Tensor, time: Tensor, told: Condition, context: Context) -> Tensor:
            if fake is not None:
                sign = torch.where(fake, -1.0, 1.0)
                told = with_target_time(told, told.extra["target_time"] * sign.to(told.extra["target_time"]))
                time = time * sign.to(time)
            return network(x, time, told, context)

        told = with_target_time(self.with_guidance(condition, scale, x), s)
        denoiser = self.teacher.denoiser(asked, calls=network)  # type: ignore[arg-type]
        return denoiser(x, self.path(t), told, Context()).flow(self.path)

    def times(self, draws: Draws, device: torch.device) -> tuple[Tensor, Tensor]:
        """(s, t), (B,) float64, s < t: any step, the whole path, or a short one."""
        config = self.config
        kind = draws.uniform("kind", device=device)
        t = draws.uniform("time", device=device).double().clamp(min=config.min_time)
        share = draws.uniform("end", device=device).double().clamp(min=1e-6)  # a step has a length
        whole, near = kind < config.one_step, kind >= 1 - config.near
        t = torch.where(whole, 1.0, t)
        return torch.where(whole, 0.0, t * (1 - torch.where(near, 0.05 * share, share))), t

    @torch.no_grad()
    def field(
        self, models: Mapping[str, nn.Module], x0: Tensor, eps: Tensor, x: Tensor, t: Tensor, condition: Condition, scale: Scale
    ) -> Tensor:
        """v at x_t (B, ...)."""
        if self.config.mode == "distillation":
            return self.teacher_predict(models, x, self.path(t), condition, scale).flow(self.path)
        v = eps - x0
        if not self.config.enhance:
            return v
        network = unwrap(models["target"])
        with_c, blank = (self.velocity(network, x, t, t, c, scale) for c in (condition, condition.null()))
        return v + self.config.enhance * (with_c - blank)

    @torch.no_grad()
    def target(
        self,
        models: Mapping[str, nn.Module],
        said: Tensor,
        x: Tensor,
        v: Tensor,
        s: Tensor,
        t: Tensor,
        condition: Condition,
        scale: Scale,
    ) -> Tensor:
        """What F(x_t, t, s) is to be: (t - s) F = d v + (t - d - s) F^-(x - d v, t - d, s), the last in `order` parts, so that
        the first part of a step is along the field; F moves there by at most `limit`."""
        config, network = self.config, unwrap(models["target"])
        length = t - s
        first = torch.minimum(torch.full_like(length, config.difference), length)
        rest, now = x - expand(first, x) * v, t - first
        gone = expand(first, x) * v
        for part in range(config.order):
            then = now + (s - now) / (config.order - part)
            moved = expand(now - then, x) * self.velocity(network, rest, now.clamp(min=config.min_time), then, condition, scale)
            rest, now, gone = rest - moved, then, gone + moved
        # as a difference quotient over `first`: its limit bounds how far one step's F is moved
        excess = (expand(length, x) * said - gone) / expand(first, x)
        return said - excess.clamp(-config.limit, config.limit)

    # ---- losses ----

    def reweighted(self, error: Tensor) -> Tensor:
        """Of errors (B,), those whose gradients are alike in size: error / c / (error / c^2 + 1)^1/2, its divisor constant."""
        c = self.config.robust
        return error * (error.detach() / c**2 + 1).rsqrt() / c

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config, x0 = self.config, self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        s, t = self.times(draws, x0.device)
        eps, start = draws.normal_like("eps", x0), draws.normal_like("start", x0)
        x = self.path(t).mix(x0, eps)
        one, zero, no = torch.ones_like(t), torch.zeros_like(t), torch.zeros_like(t, dtype=torch.bool)
        with torch.no_grad():
            own = draws.normal_like("own start", x0)
            drawn = own - self.velocity(unwrap(models["student"]), own, one, zero, condition, scale)
        own_t, own_eps = self.judged("own", draws, x0.device), draws.normal_like("own eps", x0)
        x_own = self.path(own_t).mix(drawn, own_eps)
        rows, times = torch.cat([x, x_own, start]), torch.cat([t, own_t, one])
        ends, fake = torch.cat([s, own_t, zero]), torch.cat([no, ~no, no])
        thrice = condition.map(lambda value: torch.cat([value] * 3))
        scales = torch.cat([scale] * 3) if isinstance(scale, Tensor) else scale
        any_step, of_own, whole = self.velocity(models["student"], rows, times, ends, thrice, scales, fake).chunk(3)

        v = self.field(models, x0, eps, x, t, condition, scale)
        wanted = self.target(models, any_step.detach(), x, v, s, t, condition, scale)
        weight = torch.tan((1 - (t - s)) * math.pi / 2.5) + 1  # as in the repository: short steps count more
        any_error = self.reweighted(losses.squared(any_step, wanted))
        total = (weight.to(any_error) * any_error).mean()
        fake_error = self.reweighted(losses.squared(of_own, own_eps - drawn)).mean()  # the flow of its own pictures
        apart = self.apart(models, start - whole.detach(), draws, condition, scale)
        matched = self.reweighted(losses.squared(whole, whole.detach() - apart)).mean()
        logged = {"any_step": any_error.detach().mean(), "own": fake_error.detach(), "apart": apart.abs().mean()}
        return total + config.fake_weight * fake_error + config.matching_weight * matched, logged

    def judged(self, purpose: str, draws: Draws, device: torch.device) -> Tensor:
        return draws.uniform(f"{purpose} time", device=device).double().clamp(min=self.config.min_time)

    @torch.no_grad()
    def apart(self, models: Mapping[str, nn.Module], drawn: Tensor, draws: Draws, condition: Condition, scale: Scale) -> Tensor:
        """The velocity of its own pictures less that of the data (B, ...), at its pictures noised to any time."""
        t = self.judged("judged", draws, drawn.device)
        x = self.path(t).mix(drawn, draws.normal_like("judged eps", drawn))
        both, no = torch.cat([t, t]), torch.zeros_like(t, dtype=torch.bool)
        twice = condition.map(lambda value: torch.cat([value, value]))
        scales = torch.cat([scale, scale]) if isinstance(scale, Tensor) else scale
        network = unwrap(models["student"])
        of_own, real = self.velocity(network, torch.cat([x, x]), both, both, twice, scales, torch.cat([~no, no])).chunk(2)
        return (of_own - real).clamp(-self.config.limit, self.config.limit)
