"""Align Your Flow: a teacher's flow map, learned in continuous time from either of its two ends.

f(x_t, t, s) = x_t + (s - t) F(x_t, t, s) goes from t to s. The Eulerian loss (EMD) says that the end does not change as x_t
moves along the teacher's trajectory, df/dt = 0; the Lagrangian one (LMD) that the end moves along the teacher's field as s
does, df/ds = v(f, s). Where s = t both are flow matching, and where s = 0 the first is continuous-time consistency. The
teacher's field is guided, or, with `weak`, sharpened by a worse model of the same kind (autoguidance).

Source: arXiv 2506.14603, section 3 (AYF-EMD and AYF-LMD). Its adversarial finetuning is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.jvp import How, jvp
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale, Teacher
from distill.objectives.mean_flow import MeanFlowObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase, Role
from samplers.denoiser import Condition, Context
from samplers.guidance.two_branch import Guided, as_guided, lerp, scale_at
from samplers.interval import EVERYWHERE
from samplers.path import NoiseLevel, expand


class AlignYourFlowConfig(StudentConfig):
    """form: the end whose derivative is taken, t (eulerian) or s (lagrangian, with a teacher's call more to judge where the
    student went).

    interval_mean, interval_std: of the logit of t - s; t is uniform over what is left of the clock. min_time: of t. warmup:
    steps over which the derivative of F comes in. normalisation: c of g / (|g| + c), or null for none. weak: a model folder
    like the teacher's, trained less or smaller: guidance then goes away from it instead of from the empty prompt, at the
    teacher's guidance_scale. derivative: `distill.losses.jvp`.
    """

    form: Literal["eulerian", "lagrangian"] = "eulerian"
    interval_mean: float = -0.8
    interval_std: float = Field(default=1.0, gt=0)
    min_time: float = Field(default=0.001, ge=0, lt=1)
    warmup: int = Field(default=10_000, ge=0)
    normalisation: float | None = Field(default=0.1, gt=0)
    weak: str | None = None
    derivative: How = "forward"


class AlignYourFlowObjective(MeanFlowObjective):
    """See the module. Role `weak`, frozen, where there is one."""

    config: AlignYourFlowConfig  # type: ignore[assignment]
    source: ClassVar[str] = "arXiv 2506.14603"

    def __init__(self, config, network, source=None, teacher=None, weak: Teacher | None = None):
        super().__init__(config, network, source, teacher)
        self.weak = weak
        if config.weak is not None and weak is None:
            self.weak = Teacher.load(config.teacher.model_copy(update={"model": config.weak}))
        if self.weak is not None:
            check_alike(self.teacher, self.weak)
            self.roles["weak"] = Role(self.weak.network, trains=False, ema=False)

    def times(self, draws: Draws, device: torch.device) -> tuple[Tensor, Tensor]:
        """(s, t), (B,) float64, s < t."""
        config = self.config
        length = torch.sigmoid(config.interval_mean + config.interval_std * draws.normal("interval", device=device).double())
        t = length + (1 - length) * draws.uniform("times", device=device).double()
        return (t - length).clamp(min=0), t.clamp(min=config.min_time)

    def teacher_predict(
        self, models: Mapping[str, nn.Module], x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale = 1.0
    ) -> Guided:
        """As of any method, or, with a weak model, weak + scale (teacher - weak)."""
        if self.weak is None:
            return super().teacher_predict(models, x, level, condition, scale)
        with torch.no_grad():
            strong = self.teacher.denoiser(models["teacher"], self.dtype)(x, level, condition, Context())
            network = models.get("weak", self.weak.network)
            weak = self.weak.denoiser(network, self.weak.dtype)(x, level, condition, Context())
            inside = scale_at(lambda _: torch.as_tensor(scale), self.config.teacher.guidance_interval or EVERYWHERE, level)
            # autoguidance: lambda v + (1 - lambda) v_weak
            return as_guided(strong, lerp(weak.raw, strong.raw, inside), strong)

    def inputs(self) -> dict[str, str]:
        return {**super().inputs(), **({} if self.weak is None else {"weak": self.weak.files_digest()})}

    def teacher_digest(self) -> str:
        own = super().teacher_digest()
        return own if self.weak is None else f"{own} {self.weak.sampling_digest(self.config.teacher, 1.0)}"

    def direction(
        self, models: Mapping[str, nn.Module], x: Tensor, s: Tensor, t: Tensor, condition: Condition, scale: Scale, step: int
    ) -> tuple[Tensor, Tensor]:
        """(F(x_t, t, s), which way it ought to move), without gradients."""
        config = self.config
        network, length = unwrap(models["student"]), expand(t - s, x)
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        if config.form == "eulerian":
            v = self.teacher_predict(models, x, self.path(t), condition, scale).flow(self.path)

            def from_start(x: Tensor, t: Tensor) -> Tensor:
                return self.mean_velocity(network, x, s, t, condition, scale)

            said, change = jvp(from_start, (x, t), (v, torch.ones_like(t)), self.derivative)
            g = v - said - warm * length * change  # AYF-EMD: df/dt = v - F + (s - t) dF/dt
        else:

            def to_end(s: Tensor) -> Tensor:
                return self.mean_velocity(network, x, s, t, condition, scale)

            said, change = jvp(to_end, (s,), (torch.ones_like(s),), self.derivative)
            end = self.path(s.clamp(min=config.min_time))
            v = self.teacher_predict(models, x - length * said, end, condition, scale).flow(self.path)
            g = v - said + warm * length * change  # AYF-LMD: v(f, s) - df/ds, with df/ds = F + (s - t) dF/ds
        if config.normalisation is not None:
            g = g / (expand(g.flatten(1).norm(dim=1), g) + config.normalisation)
        return said, g

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, x0.device, draws), self.scale(draws, x0.device)
        s, t = self.times(draws, x0.device)
        x = self.path(t).mix(x0, draws.normal_like("eps", x0))
        with torch.no_grad():
            said, g = self.direction(models, x, s, t, condition, scale, step)
        mine = self.mean_velocity(models["student"], x, s, t, condition, scale)
        # the gradients of both theorems with w = 1 / |t - s|, as one regression
        error = (mine - said - g).flatten(1).square().mean(1)
        return error.mean(), {"tangent": g.flatten(1).norm(dim=1).mean()}


def check_alike(teacher: Teacher, weak: Teacher) -> None:
    """ValueError unless both models' outputs mean the same, so that one can be taken from the other."""
    for name in ("path", "prediction", "clock", "input_scale", "sigma_data", "latent_scale"):
        ours, theirs = getattr(teacher.model, name, None), getattr(weak.model, name, None)
        if ours != theirs:
            raise ValueError(
                f"The weak model {weak.name!r} has {name} {theirs!r}, but the teacher {teacher.name!r} {ours!r}: autoguidance "
                "takes one's output from the other's, so give a weaker model of the same kind."
            )
