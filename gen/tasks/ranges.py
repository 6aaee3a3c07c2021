"""Conditions that act at some noise levels only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.interval import contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class WithinRanges(DenoiserWrapper):
    """Takes further tensors out of the condition at levels beyond their range.

    ranges: name -> (lowest, highest) log-SNR.
    prefixes: what begins the names of its tensors in `Condition.extra`.
    """

    denoiser: Denoiser
    ranges: Mapping[str, tuple[float, float]]
    prefixes: tuple[str, ...]

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        away = tuple(name for name, interval in self.ranges.items() if not contains(interval, level))
        if not away:
            return self.denoiser(x, level, condition, context)
        gone = {prefix + name for name in away for prefix in self.prefixes}
        inside = context.fork("without", away)
        without = inside.memo("without", (condition,), lambda: _without(condition, gone))
        return self.denoiser(x, level, without, replace(inside, branch=context.branch))


def _without(condition: Condition, gone: set[str]) -> Condition:
    return replace(condition, extra={name: value for name, value in condition.extra.items() if name not in gone})
