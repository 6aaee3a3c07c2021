"""Inversion: from an image to the noise that a solver makes it from.

The probability-flow ODE dx/dt = alpha' x0 + sigma' eps does not change when (alpha, x0) and (sigma, eps) change places, and
then noise falls where it rose. `Mirror` is a denoiser seen that way, so every solver without noise also runs from data to
noise, at its own order, and needs to know nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel, Path, Scalar
from samplers.prediction import Prediction
from samplers.sample import Solver, sample


def _swap(level: NoiseLevel) -> NoiseLevel:
    return NoiseLevel(level.t, level.sigma, level.alpha)


@dataclass(frozen=True)
class MirrorPath:
    """A path whose signal is the other's noise: log-SNR changes its sign. Its clock is the other's and runs backwards."""

    path: Path

    @property
    def t_noise(self) -> float:
        return 0.0

    def __call__(self, t: Scalar) -> NoiseLevel:
        return _swap(self.path(t))

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        return _swap(self.path.at_logsnr(-value))

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        d_alpha, d_sigma = self.path.rate(_swap(level))
        return d_sigma, d_alpha


@dataclass(frozen=True)
class Mirror:
    """A denoiser whose x0 is the other's eps, and the other way round."""

    denoiser: Denoiser

    @property
    def path(self) -> Path:
        return MirrorPath(self.denoiser.path)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        p = self.denoiser(x, _swap(level), condition, context)
        return Prediction(x, level, p.raw, (p.row[1], p.row[0]), p.variance)


def invert(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    iterations: int = 1,
    context: Context | None = None,
) -> Tensor:
    """x (B, C, H, W) at the last level of a sampling grid -> the x at its first level that leads there.

    Any solver without noise; sampling the result again misses x by an error of the solver's order. From clean data the first
    step is x_s = alpha x + sigma eps(x_s), by `iterations` fixed-point evaluations of that equation (1 is DDIM inversion,
    arXiv 2105.05233, appendix F); more undo the sampler's last Euler step exactly.
    Raises ValueError if the grid goes straight from pure noise to clean data.
    """
    context, levels = context or Context(), list(levels)
    if iterations < 1:
        raise ValueError(f"Inversion from clean data takes at least one evaluation, got iterations={iterations}.")
    if levels[-1].sigma == 0:
        levels.pop()
        if levels[-1].alpha == 0:
            raise ValueError("Inversion needs a level between clean data and pure noise: ask the grid for more steps.")
        x = _implicit_step(denoiser, x, levels[-1], NoiseLevel(0.0, 1.0, 0.0), condition or Condition(), context, iterations)[0]
    if len(levels) == 1:
        return x
    return sample(Mirror(denoiser), solver, x, [_swap(v) for v in reversed(levels)], condition, context=context)


def invert_exact(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    iterations: int = 100,
    tolerance: float = 1e-6,
    context: Context | None = None,
) -> Tensor:
    """The x at levels[0] that Euler (DDIM) along these levels takes to x, to rounding rather than to an order.

    Each step is undone by fixed-point iteration of x_s = (alpha_s / alpha_t) x_t + (sigma_s - alpha_s sigma_t / alpha_t)
    eps(x_s), until no pixel changes by more than `tolerance` (arXiv 2309.04907). The grid must start with alpha > 0.
    Raises ValueError where that takes more than `iterations` evaluations: the steps are too large to be undone.
    """
    if not 0 < tolerance < math.inf or iterations < 1:
        raise ValueError(f"Give tolerance > 0 and iterations >= 1, got {tolerance} and {iterations}.")
    if levels[0].alpha == 0:
        raise ValueError("Pure noise has no image to come back to: start the grid at a level with alpha > 0.")
    context, condition = context or Context(), condition or Condition()
    for t, s in pairwise(reversed(levels)):
        x, change = _implicit_step(denoiser, x, s, t, condition, context, iterations, tolerance)
        if not change <= tolerance:
            raise ValueError(
                f"Inversion did not settle at log-SNR {s.logsnr:.4g}: x still changes by {change:.2g} after {iterations} "
                f"evaluations, more than {tolerance:.2g}. Use more steps, a larger tolerance or more iterations."
            )
    return x


def _implicit_step(
    denoiser: Denoiser,
    x: Tensor,
    s: NoiseLevel,
    t: NoiseLevel,
    condition: Condition,
    context: Context,
    iterations: int,
    tolerance: float | None = None,
) -> tuple[Tensor, float]:
    """The x_s that an Euler step from s to t takes to x, and the last change; at most `iterations` evaluations."""
    keep = s.alpha / t.alpha
    kept, change = keep * x, math.inf
    guess = kept
    for _ in range(iterations):
        eps = denoiser(guess, s, condition, context).eps
        new = torch.add(kept, eps, alpha=s.sigma - keep * t.sigma)  # the fixed-point equation of arXiv 2309.04907
        if tolerance is not None:
            change = (new - guess).abs().max().item()
        guess = new
        if tolerance is not None and change <= tolerance:
            break
    return guess, change
