"""The two evaluations that guidance compares, and what its rules share.

Shapes: x and every reading (B, ...); scales and levels are floats, or (B,) with one per sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.path import NoiseLevel, Scalar, expand
from samplers.prediction import Guided, Prediction
from samplers.rows import repeat_level, stack_conditions, take_prediction
from samplers.wrappers import DenoiserWrapper

Schedule: TypeAlias = Callable[[NoiseLevel], Scalar]  # a guidance scale for every noise level


def as_guided(base: Prediction, raw: Tensor, cond: Prediction | None = None, null: Prediction | None = None) -> Guided:
    """`raw` in the reading of `base`, with its learned variance."""
    return Guided(base.x, base.level, raw, base.row, base.variance, cond, null)


def both_branches(
    denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition, negative: Condition | None, context: Context
) -> tuple[Prediction, Prediction]:
    """(conditional, unconditional) predictions from one batch of 2B, conditional half first."""
    both = context.memo("cfg both", (condition, negative), lambda: _both(condition, negative, x.shape[0]))
    joint = denoiser(torch.cat([x, x]), repeat_level(level, 2), both, context.fork("cond", "null"))
    cond, null = (take_prediction(joint, x, level, rows) for rows in (slice(0, len(x)), slice(len(x), None)))
    return cond, null


def one_branch(
    denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition, negative: Condition | None, context: Context
) -> Prediction:
    """The unconditional prediction alone."""
    null = context.memo("cfg null", (condition, negative), lambda: _null(condition, negative, x.shape[0]))
    return denoiser(x, level, null, context.fork("null"))


@dataclass(frozen=True)
class TwoBranch(DenoiserWrapper):
    """What two-branch rules have in common: where they act, how strongly, and that nothing is evaluated in vain.

    scale: a number, or a function of the level (`samplers.guidance.schedule`). `negative` takes the place of the empty
    condition (batch of x's, or a part of it, which is repeated: row i mod that is row i's). interval: (lowest, highest) logsnr
    at which guidance acts (arXiv 2404.07724); outside, and where the scale is 1, only the condition is evaluated. A subclass
    says how the branches `combine`.
    """

    denoiser: Denoiser
    scale: float | Schedule
    negative: Condition | None = None
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        scale = scale_at(self.scale, self.interval, level)
        if not isinstance(scale, Tensor) and scale == 1:
            return self.conditional(x, level, condition, context)
        cond, null = both_branches(self.denoiser, x, level, condition, self.negative, context)
        return self.combine(cond, null, scale, context)

    def conditional(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        cond = self.denoiser(x, level, condition, context.fork("cond"))
        return as_guided(cond, cond.raw, cond)

    def combine(self, cond: Prediction, null: Prediction, scale: Scalar, context: Context) -> Prediction:
        raise NotImplementedError


def scale_at(scale: float | Schedule, interval: Interval, level: NoiseLevel) -> Scalar:
    """The scale at a level: 1, no guidance, outside the interval. A float for float levels, (B,) for (B,) ones."""
    low, high = interval
    value = scale(level) if callable(scale) else scale
    if isinstance(level.logsnr, Tensor) and interval != EVERYWHERE:
        return torch.where((level.logsnr >= low) & (level.logsnr <= high), value, 1.0)
    return value if isinstance(level.logsnr, Tensor) or low <= level.logsnr <= high else 1.0


def check_scale(scale: Any, name: str = "guidance scale") -> None:
    if callable(scale):
        return
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise ValueError(f"The {name} must be a finite number, got {scale!r}; 1 means no guidance.")


def read_x0(prediction: Prediction) -> Tensor:
    """x0, for rules that act on it. Raises ValueError where the output does not determine it: eps at pure noise."""
    alpha, a = prediction.level.alpha, prediction.row[0]
    if not isinstance(alpha, Tensor) and not isinstance(a, Tensor) and alpha == 0 and a == 0:
        raise ValueError(
            "At pure noise (alpha = 0) an eps prediction says nothing about the image, so a rule that acts on x0 cannot be "
            "used there: use a model that predicts x0, v or flow, or start the grid at a level with alpha > 0."
        )
    return prediction.x0


def at_least_float32(x: Tensor) -> Tensor:
    """At least float32, so that norms of half-precision images do not overflow."""
    return x if x.dtype == torch.float64 else x.float()


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of every sample, (B, 1, ...)."""
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))


def lerp(a: Tensor, b: Tensor, weight: Scalar) -> Tensor:
    """a + weight (b - a)."""
    return a + expand(weight, a) * (b - a)


def _both(condition: Condition, negative: Condition | None, batch: int) -> Condition:
    return stack_conditions([condition, _null(condition, negative, batch)])


def _null(condition: Condition, negative: Condition | None, batch: int) -> Condition:
    if negative is None:
        return condition.null()
    # what lies over x is of this part of a canvas, which the condition has
    negative = negative.aligned_as(condition)
    return negative.map(lambda v: v.repeat(batch // len(v), *[1] * (v.ndim - 1)) if 0 < len(v) < batch else v)


def count_branches(context: Context) -> int:
    """How many branches of guidance the batch holds, one after another."""
    return 2 if context.branch[-2:] == ("cond", "null") else 1


def count_conditional_rows(context: Context, rows: int) -> int:
    """How many rows of a batch, its first, have a condition: all, those of the conditional branch, or none."""
    if count_branches(context) == 2:
        return rows // 2
    return 0 if context.branch[-1:] == ("null",) else rows
