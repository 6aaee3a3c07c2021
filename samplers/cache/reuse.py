"""Skipped levels: the network runs at every n-th step, and its output is extrapolated in between."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from samplers.cache.common import check_stride
from samplers.denoiser import Condition, Context, Denoiser
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction, prediction_row
from samplers.step_cache import latest, network_id, recall, remember
from samplers.wrappers import DenoiserWrapper

READINGS = ("x0", "eps", "v", "flow")


@dataclass(frozen=True)
class Reuse(DenoiserWrapper):
    """Evaluates every `stride`-th step; at the others the polynomial through the last order + 1 outputs speaks, in logsnr.

    order 0 repeats the last output, 1 extrapolates it linearly, 2 and 3 as the Adams methods do; fewer outputs, or an output
    at pure noise, lower it. `reading` is what is extrapolated: x0, eps, v or flow. interval: (lowest, highest) logsnr in which
    steps may be skipped. With stride 1 every prediction is the network's own. In a run of n steps inside the interval the
    network is evaluated ceil(n / stride) times by a solver with one evaluation per step.

    Around a network or under guidance, whose branches are remembered apart: ClassifierFree(Reuse(denoiser), scale). Rules that
    read the branches of a guided prediction (Rescale, CFGPlusPlus) go around it, never under it.
    """

    denoiser: Denoiser
    stride: int = 2
    order: int = 1
    interval: Interval = EVERYWHERE
    reading: str = "x0"

    def __post_init__(self) -> None:
        check_stride(self.stride)
        check_interval(self.interval, "cache interval")
        if isinstance(self.order, bool) or self.order not in (0, 1, 2, 3):
            raise ValueError(f"Reuse got order={self.order!r}; choose 0 (repeat), 1 (linear), 2 or 3.")
        if self.reading not in READINGS:
            raise ValueError(f"Reuse got reading={self.reading!r}; choose one of {', '.join(READINGS)}.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.stride == 1 or isinstance(level.logsnr, Tensor):
            return self.denoiser(x, level, condition, context)
        name = ("reuse", network_id(self.denoiser), self.reading)
        row = prediction_row(self.reading, level, self.path)
        last = latest(context, name, within=self.stride)
        fresh = last is not None and last[1][1].shape == x.shape
        if last is not None and fresh and last[0] < self.stride and contains(self.interval, level):
            past = [value for _, value in recall(context, name)]
            return Prediction(x, level, _extrapolate(past, level.logsnr, self.order), row, last[1][2])
        prediction = self.denoiser(x, level, condition, context)
        value = (level.logsnr, prediction.read(row), prediction.variance)
        remember(context, name, value, keep=self.order + 1 if fresh else 0)
        return prediction


def _extrapolate(past: list[tuple[float, Tensor, Tensor | None]], logsnr: float, order: int) -> Tensor:
    """The polynomial through the last order + 1 (logsnr, output), at `logsnr`; the last output alone if either is infinite."""
    newest = past[-1]
    points = {newest[0]: newest[1]}
    if math.isfinite(newest[0]) and math.isfinite(logsnr):
        for node, value, _ in reversed(past[:-1]):
            if len(points) <= order and math.isfinite(node):
                points.setdefault(node, value)
    result = None
    for node, value in points.items():
        weight = math.prod((logsnr - other) / (node - other) for other in points if other != node)
        result = weight * value if result is None else result.add(value, alpha=weight)
    assert result is not None
    return result
