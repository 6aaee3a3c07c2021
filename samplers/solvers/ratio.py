"""The noise level that all paths share with EDM."""

from __future__ import annotations

import math

from samplers.path import NoiseLevel


def noise_ratio(level: NoiseLevel) -> float:
    """r = sigma / alpha of a level of floats: 0 at clean data, infinite at pure noise. In y = x / alpha, dy/dr = eps."""
    return level.sigma / level.alpha if level.alpha else math.inf
