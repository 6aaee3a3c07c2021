"""Steps with noise along a trajectory as normal distributions of what comes next, and their log-probabilities.

A step goes from x at s (noisier) to t (cleaner), one level per sample (B,); x, x0 and means are (B, C, H, W), deviations (B,).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from samplers.path import NoiseLevel, expand

Noise = Literal["ddim", "flow", "renoise"]


def noising(x: Tensor, t: NoiseLevel, s: NoiseLevel) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of the noising process from x at t (cleaner) to s (noisier), on any path."""
    return expand(s.alpha / t.alpha, x) * x, added_noise(t, s)


def added_noise(t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """(B,): sigma_{s|t}, the deviation of the noise that the noising process adds from t (cleaner) to s."""
    return (s.sigma**2 - (s.alpha / t.alpha * t.sigma) ** 2).clamp(min=0).sqrt()


def ddim(x0: Tensor, x: Tensor, s: NoiseLevel, t: NoiseLevel, eta: float) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of a DDIM step with noise; eta 1 is the posterior of DDPM (arXiv 2010.02502, equations 12 and 16)."""
    ratio = s.alpha * t.sigma / (t.alpha * s.sigma)
    # arXiv 2010.02502, equation 16; the forward process from t to s has the variance sigma_s^2 (1 - ratio^2)
    deviation = eta * t.sigma * (1 - ratio**2).clamp(min=0).sqrt()
    eps = (x - expand(s.alpha, x) * x0) / expand(s.sigma, x)
    return expand(t.alpha, x) * x0 + expand((t.sigma**2 - deviation**2).clamp(min=0).sqrt(), x) * eps, deviation


def flow(x0: Tensor, x: Tensor, s: NoiseLevel, t: NoiseLevel, level: float, largest: float) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of an Euler-Maruyama step of the SDE with a flow's marginals (arXiv 2505.05470, equations 8 and 9).

    On y = x / (alpha + sigma), which is on a rectified flow at u = sigma / (alpha + sigma) on any path:
    dy = (v + g^2 / (2 u) eps) du + g dw with g = level sqrt(u / (1 - u)). largest: the u that stands for larger ones in g,
    which is infinite at 1.
    """
    (u, v), (first, second) = ((n.sigma / (n.alpha + n.sigma) for n in (s, t)), (n.alpha + n.sigma for n in (s, t)))
    y = x / expand(first, x)
    eps = (y - expand(1 - u, x) * x0) / expand(u, x)
    held = u.clamp(max=largest)
    square = level**2 * held / (1 - held)
    # arXiv 2505.05470, equation 9
    mean = y + expand(v - u, x) * (eps - x0 + expand(square / (2 * u), x) * eps)
    return expand(second, x) * mean, second * (square * (u - v)).sqrt()


def renoise(x0: Tensor, t: NoiseLevel) -> tuple[Tensor, Tensor]:
    """(mean, deviation) of a step of a few-step sampler: the clean image with new noise (arXiv 2303.01469, Algorithm 1)."""
    return expand(t.alpha, x0) * x0, t.sigma


def log_prob(ahead: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(B,): log N(ahead; mean, deviation^2), the mean over dimensions, as published codes have it."""
    error = (ahead - mean).square().flatten(1).mean(1)
    wide = deviation.to(error)
    return -error / (2 * wide**2) - wide.log() - 0.5 * math.log(2 * math.pi)


def divergence(mean: Tensor, other: Tensor, deviation: Tensor) -> Tensor:
    """(B,): the Kullback-Leibler divergence of two normal distributions of one deviation, the mean over dimensions."""
    return (mean - other).square().flatten(1).mean(1) / (2 * deviation.to(mean) ** 2)


def sampled(mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """A sample, differentiable in the mean: x at t."""
    return torch.add(mean, expand(deviation, mean) * noise)


def drawn(mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    """A sample, without a gradient: x at t."""
    return sampled(mean, deviation, noise).detach()
