"""DPM-Solver++: exponential integrators of the image prediction, singlestep and multistep, with and without noise.

With h = logsnr_t - logsnr_s, the exact solutions of the probability-flow ODE and of the reverse SDE are

    x_t = (sigma_t / sigma_s) x_s + alpha_t integral_s^t e^{-(logsnr_t - l)} x0(l) dl                              (9)
    x_t = (sigma_t / sigma_s) e^{-h} x_s + 2 alpha_t integral_s^t e^{-2 (logsnr_t - l)} x0(l) dl
          + sigma_t sqrt(1 - e^{-2 h}) z                                                                           (18)

(arXiv 2211.01095). The names are those of k-diffusion: 2S and 3S evaluate x0 inside a step, 2M and 3M remember it.
"""

from __future__ import annotations

from samplers.solvers.multistep import Multistep
from samplers.solvers.singlestep import Singlestep


def dpmpp_2s(rule: str = "published", r1: float | None = None) -> Singlestep:
    """x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^{-h}) D, D = (1 - 1 / (2 r1)) x0_s + x0(u) / (2 r1).

    u is the first-order step to the share r1 = 1/2 of the step. rule: "published", or "exact" weights of both points.
    Source: arXiv 2211.01095, Algorithm 1 (DPM-Solver++(2S)).
    """
    return Singlestep(2, rule=rule, r1=r1)


def dpmpp_3s(rule: str = "published", r1: float | None = None, r2: float | None = None) -> Singlestep:
    """Equation (9) through x0 at r1 = 1/3 and r2 = 2/3 of the step, each reached through the points before it."""
    return Singlestep(3, rule=rule, r1=r1, r2=r2)


def dpmpp_2s_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Singlestep:
    """DPM-Solver++(2S) down to the level below t of an ancestral step, then noise up to t, as in k-diffusion."""
    return Singlestep(2, eta=eta, noise="ancestral", s_noise=s_noise)


def dpmpp_sde(r1: float | None = None, eta: float = 1.0, s_noise: float = 1.0) -> Singlestep:
    """DPM-Solver++(2S) with noise at both points, each for its whole way from s, as in k-diffusion; wants Brownian noise."""
    return Singlestep(2, eta=eta, noise="overlapping", r1=r1, s_noise=s_noise)


def dpmpp_2m(ending: str = "bounded", rule: str = "midpoint") -> Multistep:
    """x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^{-h}) D, D = x0_s + (x0_s - x0_before) h / (2 h_before).

    ending: what a long step keeps of its memory, see `samplers.solvers.ending`. rule: "midpoint" as published, or "exact".
    Source: arXiv 2211.01095, Algorithm 2 (DPM-Solver++(2M)).
    """
    return Multistep(2, rule=rule, ending=ending)


def dpmpp_2m_sde(ending: str = "bounded", rule: str = "midpoint", eta: float = 1.0, s_noise: float = 1.0) -> Multistep:
    """x_t = (sigma_t / sigma_s) e^{-eta h} x_s + alpha_t (1 - e^{-(1 + eta) h}) D + sigma_t sqrt(1 - e^{-2 eta h}) z.

    D as in `dpmpp_2m`. eta: strength tau^2 of the reverse SDE's noise, 1 for equation (18). s_noise: factor on z.
    """
    return Multistep(2, eta=eta, rule=rule, s_noise=s_noise, ending=ending)


def dpmpp_2m_sde_heun(ending: str = "bounded", eta: float = 1.0, s_noise: float = 1.0) -> Multistep:
    """`dpmpp_2m_sde` with the exact integral of the line through both predictions, k-diffusion's solver_type "heun"."""
    return dpmpp_2m_sde(ending, "exact", eta, s_noise)


def dpmpp_3m(ending: str = "bounded", rule: str = "published") -> Multistep:
    """Equation (9) with x0 the parabola through the latest three predictions; published with half its second moment.

    Source: the third-order multistep form of arXiv 2211.01095 as its authors' code has it.
    """
    return Multistep(3, rule=rule, ending=ending)


def dpmpp_3m_sde(ending: str = "bounded", rule: str = "published", eta: float = 1.0, s_noise: float = 1.0) -> Multistep:
    """Equation (18) with the parabola of `dpmpp_3m`, as in k-diffusion."""
    return Multistep(3, eta=eta, rule=rule, s_noise=s_noise, ending=ending)
