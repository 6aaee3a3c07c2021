"""DPM-Solver: exponential integrators of the noise prediction.

With h = logsnr_t - logsnr_s, the exact solution of the probability-flow ODE is

    x_t = (alpha_t / alpha_s) x_s - sigma_t integral_s^t e^{logsnr_t - l} eps(l) dl                               (3.4)

(arXiv 2206.00927). A singlestep solver evaluates eps at levels inside the step, a multistep one remembers it from the steps
before. DPM-Solver-fast and the adaptive DPM-Solver-23 are `Blockwise` and `Adaptive`.
"""

from __future__ import annotations

from samplers.solvers.churn import ChurnedSolver
from samplers.solvers.multistep import Multistep
from samplers.solvers.singlestep import Singlestep


def dpm_solver_2(rule: str = "published", r1: float | None = None) -> Singlestep:
    """x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) eps(u), with u the first-order step to the middle in log-SNR.

    rule: "published", or "exact" weights of both points (`step_weights`). r1: where the inner point lies, 1/2 by default; at
    another one the value in the middle is that of the line through both.
    Source: arXiv 2206.00927, Algorithm 1 (DPM-Solver-2).
    """
    return Singlestep(2, "eps", rule=rule, r1=r1)


def dpm_solver_3(rule: str = "published", r1: float | None = None, r2: float | None = None) -> Singlestep:
    """x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) eps_s - sigma_t / r2 ((e^h - 1) / h - 1) (eps(u_2) - eps_s).

    u_2 lies at r2 = 2/3 of the step and is reached through u_1 at r1 = 1/3. rule: "published", or "exact" for all points.
    Source: arXiv 2206.00927, Algorithm 2 (DPM-Solver-3).
    """
    return Singlestep(3, "eps", rule=rule, r1=r1, r2=r2)


def dpm_2(s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = float("inf"), s_noise: float = 1.0) -> ChurnedSolver:
    """DPM-Solver-2 with EDM's churn before each step, as in k-diffusion."""
    return ChurnedSolver(dpm_solver_2(), s_churn, s_tmin, s_tmax, s_noise)


def dpm_2_ancestral(eta: float = 1.0, s_noise: float = 1.0) -> Singlestep:
    """DPM-Solver-2 down to the level below t of an ancestral step, then noise up to t, as in k-diffusion."""
    return Singlestep(2, "eps", eta=eta, noise="ancestral", s_noise=s_noise)


def dpm_solver_2m(ending: str = "bounded", rule: str = "midpoint", eta: float = 0.0, s_noise: float = 1.0) -> Multistep:
    """x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) D, D = eps_s + (eps_s - eps_before) h / (2 h_before).

    ending: what a long step keeps of its memory, see `samplers.solvers.ending`. rule: "midpoint" as published, or "exact".
    eta: strength tau^2 of the reverse SDE's noise. Source: the form of arXiv 2211.01095, Algorithm 2, on the noise prediction.
    """
    return Multistep(2, eta=eta, rule=rule, s_noise=s_noise, predict="eps", ending=ending)


def dpm_solver_3m(ending: str = "bounded", rule: str = "published", eta: float = 0.0, s_noise: float = 1.0) -> Multistep:
    """Equation (3.4) with eps the parabola through the latest three predictions; published with half its second moment.

    rule: "published", or "exact", which is DEIS in log-rho. Other arguments as of `dpm_solver_2m`.
    """
    return Multistep(3, eta=eta, rule=rule, s_noise=s_noise, predict="eps", ending=ending)
