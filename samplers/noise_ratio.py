"""The noise level that all paths share with EDM, and the way up from one level to another."""

from __future__ import annotations

import math

from samplers.path import NoiseLevel


def noise_ratio(level: NoiseLevel) -> float:
    """r = sigma / alpha of a level of floats: 0 at clean data, infinite at pure noise. In y = x / alpha, dy/dr = eps."""
    return level.sigma / level.alpha if level.alpha else math.inf


def rise(clean: NoiseLevel, noisy: NoiseLevel) -> tuple[float, float]:
    """(keep, spread) with which keep x + spread z, z unit normal, takes x from a level of floats up to a noisier one."""
    keep = noisy.alpha / clean.alpha
    return keep, math.sqrt(max(noisy.sigma**2 - (keep * clean.sigma) ** 2, 0.0))
