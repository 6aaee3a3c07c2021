"""EasyCache: the network runs again once its output should have changed enough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.cache.common import check_threshold
from samplers.denoiser import Condition, Context, Denoiser
from samplers.interval import Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.step_cache import latest, network_id, remember
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class _Memory:
    """What a step leaves: its input and output, output - input when last evaluated, change per change, change so far."""

    x: Tensor
    v: Tensor
    offset: Tensor
    rate: Tensor  # (B,), NaN until two steps have been evaluated
    change: Tensor  # (B,)
    variance: Tensor | None


@dataclass(frozen=True)
class EasyCache(DenoiserWrapper):
    """While the estimated relative change of the velocity stays under `threshold`, v = x + (v - x of the last evaluation).

    The estimate adds rate |x - x_before| / |v_before| per step, rate being |change of v| / |change of x| at the last
    evaluation and |.| the mean absolute value. v is dx/dt on the path. Every sample decides for itself, so an image does not
    depend on its batch: where one needs an evaluation the whole batch is evaluated, since a network's rounding depends on the
    number of rows, and the others keep what they have. threshold 0 changes nothing; 0.02 to 0.1 is usual.
    interval: (lowest, highest) logsnr in which evaluations may be skipped, by default t = 0.85 to 0.05 of a flow: a rate that
    was measured near pure noise, where nothing changes yet, would never ask for another one. One device synchronisation per
    call.

    Source: arXiv 2507.02860.
    """

    denoiser: Denoiser
    threshold: float = 0.05
    interval: Interval = (-1.7, 3.0)

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_interval(self.interval, "cache interval")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.threshold == 0 or isinstance(level.logsnr, Tensor):
            return self.denoiser(x, level, condition, context)
        name, row = ("easy", network_id(self.denoiser)), self.path.rate(level)
        last = latest(context, name)
        before: _Memory | None = last[1] if last is not None and last[1].x.shape == x.shape else None
        if before is None:
            first = self.denoiser(x, level, condition, context)
            v = first.read(row)
            unknown = v.new_full((len(x),), torch.nan)
            remember(context, name, _Memory(x, v, v - x, unknown, torch.zeros_like(unknown), first.variance))
            return first

        moved = _size(x - before.x)
        change = before.change + before.rate * moved / _size(before.v)  # arXiv 2507.02860: the accumulated estimate
        due = ~(change < self.threshold) if contains(self.interval, level) else torch.ones_like(change, dtype=torch.bool)
        mask = due.reshape(-1, *[1] * (x.ndim - 1))
        v, variance = x + before.offset, before.variance
        if bool(due.any()):
            now = self.denoiser(x, level, condition, context)
            v = torch.where(mask, now.read(row), v)
            if variance is not None and now.variance is not None:
                variance = torch.where(mask, now.variance, variance)

        rate = torch.where(due, _size(v - before.v) / moved, before.rate)
        offset = torch.where(mask, v - x, before.offset)
        after = _Memory(x, v, offset, rate, torch.where(due, torch.zeros_like(change), change), variance)
        remember(context, name, after)
        return Prediction(x, level, v, row, variance)  # read alike, whoever was evaluated


def _size(x: Tensor) -> Tensor:
    """Mean absolute value of every sample, (B,)."""
    return x.abs().flatten(1).mean(1)
