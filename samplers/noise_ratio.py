"""r = sigma / alpha: the noise level that all paths share with EDM, and the way up from one level to another.

In y = x / alpha every path is y = x0 + r eps, the variance-exploding path of EDM (arXiv 2206.00364), and dy/dr = eps.
"""

from __future__ import annotations

import math

from torch import Tensor

from samplers.path import NoiseLevel, Path, Scalar, VarianceExploding, wide_dtype


def noise_ratio(level: NoiseLevel) -> float:
    """r = sigma / alpha of a level of floats: 0 at clean data, infinite at pure noise."""
    return level.sigma / level.alpha if level.alpha else math.inf


def at_ratio(path: Path, ratio: Scalar) -> NoiseLevel:
    """The level of a path with sigma / alpha = ratio; infinity is pure noise.

    ratio: a float, or (B,) with one for each sample, in which case the level is found in float64 where its device has it.
    """
    if isinstance(ratio, Tensor):
        return path.at_logsnr(-ratio.to(wide_dtype(ratio.device)).log())
    if isinstance(path, VarianceExploding):
        return path(ratio)  # its clock, without a detour through the logarithm
    return path.at_logsnr(-math.log(ratio) if ratio else math.inf)


def renoise_coefficients(clean: NoiseLevel, noisy: NoiseLevel) -> tuple[float, float]:
    """(keep, spread) with which keep x + spread z, z ~ N(0, I), takes x from a level of floats up to a noisier one.

    keep = alpha_noisy / alpha_clean and spread^2 = sigma_noisy^2 - (keep sigma_clean)^2.
    """
    keep = noisy.alpha / clean.alpha
    return keep, math.sqrt(max(noisy.sigma**2 - (keep * clean.sigma) ** 2, 0.0))
