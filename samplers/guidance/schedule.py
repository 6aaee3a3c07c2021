"""Guidance scales that change with the noise: functions of the level, to be given as `scale`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from samplers.path import NoiseLevel, Path, Scalar, lift


@dataclass(frozen=True)
class PowerCosine:
    """scale(t) = 1 + (scale - 1) (1 - cos(pi (1 - t)^power)) / 2: no guidance at pure noise, all of it at clean data.

    t in [0, 1] is the clock of `path`, read from the level's log-SNR, so that the same noise gets the same scale on any path.

    Source: DiMR, arXiv 2406.09416, the power-cosine schedule of its sampler.
    """

    scale: float
    power: float
    path: Path

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and 0 < self.power < math.inf):
            raise ValueError(f"PowerCosine got scale={self.scale} and power={self.power}; give finite numbers, power above 0.")

    def __call__(self, level: NoiseLevel) -> Scalar:
        def ramp(t: Tensor) -> Tensor:
            done = 1 - (t / self.path.t_noise).clamp(0, 1)
            return 1 + (self.scale - 1) * (1 - torch.cos(math.pi * done**self.power)) / 2

        return lift(ramp, self.path.at_logsnr(level.logsnr).t)


@dataclass(frozen=True)
class Piecewise:
    """Straight lines through (logsnr, scale) points, the end values held beyond them: ramps and decays of any shape."""

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        finite = all(math.isfinite(v) for point in self.points for v in point)
        if not self.points or not finite or not all(a[0] < b[0] for a, b in pairwise(self.points)):
            raise ValueError(f"Piecewise got the points {self.points}; give finite (logsnr, scale) pairs, logsnr rising.")

    def __call__(self, level: NoiseLevel) -> Scalar:
        def value(logsnr: Tensor) -> Tensor:
            result = torch.full_like(logsnr, self.points[0][1])
            for (left, low), (right, high) in pairwise(self.points):
                result = result + (high - low) * ((logsnr - left) / (right - left)).clamp(0, 1)
            return result

        return lift(value, level.logsnr)
