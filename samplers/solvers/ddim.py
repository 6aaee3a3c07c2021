"""DDIM, Euler and Euler ancestral: one evaluation a step, x0 held constant over it."""

from __future__ import annotations

from samplers.solvers.churn import ChurnedSolver
from samplers.solvers.multistep import Multistep


def ddim(eta: float = 0.0, s_noise: float = 1.0) -> Multistep:
    """x_t = alpha_t x0 + sqrt(sigma_t^2 - a^2) eps + a z: DDIM, deterministic for eta = 0 and DDPM for eta = 1.

    a = eta sigma_t sqrt(1 - (alpha_s sigma_t / (alpha_t sigma_s))^2), the standard deviation of the posterior times eta.

    eta: share of the noise, 0 to 1. s_noise: factor on z.
    Source: arXiv 2010.02502, equations 12 and 16, on any path.
    """
    return Multistep(1, eta=eta, noise="ancestral", s_noise=s_noise)


def euler(s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"), s_noise: float = 1.0) -> ChurnedSolver:
    """y_t = y_s + (r_t - r_s) eps in y = x / alpha and r = sigma / alpha: Euler's rule, which is DDIM's step with eta = 0.

    s_churn, s_tmin, s_tmax, s_noise: EDM's churn before each step, see `ChurnedSolver`.
    Source: arXiv 2206.00364, Algorithm 2 without its correction, lines 4 to 8.
    """
    return ChurnedSolver(Multistep(1), s_churn, s_tmin, s_tmax, s_noise)


def euler_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Multistep:
    """Euler's rule down to a level below t, then noise up to t: the step of `ddim`, with eta = 1 by default."""
    return ddim(eta, s_noise)
