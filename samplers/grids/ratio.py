"""Grids in sigma / alpha: the same noise on every path."""

from __future__ import annotations

import math

from samplers.grids.common import Grid, check_positive, check_steps, from_clock, from_ratios, ramp, ratio_bounds
from samplers.path import Path, VarianceExploding, VariancePreserving


def karras(path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7.0) -> Grid:
    """sigma / alpha evenly spaced in its power 1 / rho (arXiv 2206.00364, equation 5). rho > 0."""
    low, high = ratio_bounds(path, sigma_min, sigma_max)
    check_positive("rho", rho)
    a, b = high ** (1 / rho), low ** (1 / rho)
    return from_ratios(path, [(a + u * (b - a)) ** rho for u in ramp(steps)])


def exponential(path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None) -> Grid:
    """log(sigma / alpha) evenly spaced: the "logSNR" grid of DPM-Solver."""
    return polyexponential(path, steps, sigma_min, sigma_max, rho=1.0)


def polyexponential(
    path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 1.0
) -> Grid:
    """log(sigma / alpha) as a power rho of an even ramp: rho > 1 spends more steps on low noise."""
    low, high = ratio_bounds(path, sigma_min, sigma_max)
    check_positive("rho", rho)
    span = math.log(high) - math.log(low)
    return from_ratios(path, [math.exp((1 - u) ** rho * span + math.log(low)) for u in ramp(steps)])


def uniform_logsnr(path: Path, steps: int, logsnr_min: float | None = None, logsnr_max: float | None = None) -> Grid:
    """Log-SNR evenly spaced from logsnr_min (noisy) to logsnr_max: `exponential` with its bounds in log-SNR."""
    for name, value in (("logsnr_min", logsnr_min), ("logsnr_max", logsnr_max)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}.")
    low = None if logsnr_max is None else math.exp(-logsnr_max)
    high = None if logsnr_min is None else math.exp(-logsnr_min)
    return exponential(path, steps, low, high)


def kl_optimal(path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None) -> Grid:
    """arctan(sigma / alpha) evenly spaced: optimal in KL for Gaussian data (arXiv 2404.14507, theorem 3.1).

    The angle is the clock of the cosine schedule (alpha = cos, sigma = sin), so this is also the cosine grid on every path.
    """
    low, high = ratio_bounds(path, sigma_min, sigma_max)
    a, b = math.atan(high), math.atan(low)
    return from_ratios(path, [high if u == 0 else math.tan(a + u * (b - a)) for u in ramp(steps)])


def laplace(
    path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, mu: float = 0.0, beta: float = 0.5
) -> Grid:
    """log(sigma / alpha) at even quantiles of a Laplace distribution around mu with scale beta (arXiv 2407.03297, Table 1).

    Clipped to the bounds, with the 1e-5 that keeps the outer quantiles finite, as in ComfyUI. Where more than one level is
    clipped to a bound the grid does not fall, and that is an error: use fewer steps, wider bounds or a smaller beta.
    """
    low, high = ratio_bounds(path, sigma_min, sigma_max)
    check_positive("beta", beta)
    if not math.isfinite(mu):
        raise ValueError(f"mu must be finite, got {mu}.")
    ratios = []
    for u in ramp(steps):
        side = (u < 0.5) - (u > 0.5)
        quantile = mu - beta * side * math.log(1 - 2 * abs(0.5 - u) + 1e-5)
        ratios.append(min(max(math.exp(quantile), low), high))
    return from_ratios(path, ratios)


def vp(
    path: Path,
    steps: int,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    eps_s: float = 1e-3,
    rho: float = 1.0,
) -> Grid:
    """The clock of the continuous VP process from 1 to eps_s, evenly spaced in its power 1 / rho.

    sigma / alpha = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), with the betas that reach the bounds at both ends
    (arXiv 2206.00364, Table 1 and appendix C.1). rho = 1 is EDM's and k-diffusion's VP discretisation, rho = 2 the quadratic
    time that DEIS (arXiv 2204.13902) is used with.
    """
    low, high = ratio_bounds(path, sigma_min, sigma_max)
    check_positive("rho", rho)
    if not 0 < eps_s < 1:
        raise ValueError(f"eps_s is the last time of a clock from 1 to 0: give 0 < eps_s < 1, got {eps_s}.")
    last, first = math.log1p(low**2) / eps_s, math.log1p(high**2)
    beta_d = 2 * (first - last) / (1 - eps_s)
    beta_min = first - beta_d / 2
    clock = [(1 + u * (eps_s ** (1 / rho) - 1)) ** rho for u in ramp(steps)]
    return from_ratios(path, [math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t)) for t in clock])


def iddpm(path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None) -> Grid:
    """Even indices of the 1000 levels of Improved DDPM between the bounds, as EDM states them (arXiv 2206.00364, Table 1).

    u_1000 = 0 and u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, 0.001) - 1), abar_j = sin^2(pi / 2 j / 1008).
    Raises ValueError for more steps than there are levels between sigma_min and sigma_max.
    """
    low, high = ratio_bounds(path, sigma_min, sigma_max)
    check_steps(steps)
    abar = [math.sin(math.pi / 2 * j / 1008) ** 2 for j in range(1001)]
    square, levels = 0.0, []
    for j in range(1000, 0, -1):
        square = (square + 1) / max(abar[j - 1] / abar[j], 0.001) - 1
        levels.append(math.sqrt(square))
    levels = [u for u in reversed(levels) if low <= u <= high]
    if len(levels) < steps:
        raise ValueError(
            f"The grid iddpm has {len(levels)} levels with sigma / alpha from {low:g} to {high:g}, and {steps} steps are asked "
            "for; take fewer, or wider bounds."
        )
    return from_ratios(path, [levels[round(u * (len(levels) - 1))] for u in ramp(steps)])


def linear_quadratic(path: Path, steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None) -> Grid:
    """Small even steps at high noise, then quadratically growing ones: Movie Gen (arXiv 2410.13720, section 3.4.2).

    In units of the noisiest level, 1 - sigma rises in `linear_steps` (half of them by default) even steps to threshold_noise
    and from there, with the same slope at the seam, as a parabola to 1. sigma is the clock of a flow, and sigma / alpha on
    variance-exploding paths and on tables, as in ComfyUI.
    """
    check_steps(steps)
    if not 0 < threshold_noise < 1:
        raise ValueError(f"threshold_noise is a part of the whole noise: give 0 < threshold_noise < 1, got {threshold_noise}.")
    linear = max(steps // 2, 1) if linear_steps is None else linear_steps
    if isinstance(linear, bool) or not isinstance(linear, int) or not 1 <= linear <= max(steps - 1, 1):
        raise ValueError(
            f"linear_steps must be a whole number from 1 to {max(steps - 1, 1)} for {steps} steps, got {linear!r}."
        )
    rest = max(steps - linear, 1)
    slope = threshold_noise / linear
    curve = (1 - threshold_noise - slope * rest) / rest**2
    done = [slope * i + curve * max(i - linear, 0) ** 2 for i in range(steps)]
    if isinstance(path, VarianceExploding | VariancePreserving):
        high = ratio_bounds(path)[1]
        return from_ratios(path, [high * (1 - d) for d in done])
    return from_clock(path, [path.t_noise * (1 - d) for d in done])
