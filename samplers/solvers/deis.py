"""DEIS, LMS and iPNDM: Adams-Bashforth methods on the noise prediction, in one coordinate or another.

In y = x / alpha and r = sigma / alpha every one of them is

    y_t = y_s + sum_j w_j eps_j,    w_j = integral of L_j dr over the step

with L_j the Lagrange polynomials through the remembered predictions, in log r (DEIS), in r (LMS), or in the index of the step,
as if all steps were equally long (iPNDM).

Source: arXiv 2204.13902 (DEIS; rho-DEIS is LMS, and its section on iPNDM). Published code's forms of DEIS and of iPNDM with
variable steps are in `samplers.solvers.comfy.adams`.
"""

from __future__ import annotations

from samplers.solvers.multistep import Multistep


def deis(ending: str = "bounded", order: int = 3) -> Multistep:
    """DEIS in log-rho: the polynomial lives in log-SNR, and its product with dr is integrated exactly."""
    return Multistep(order, predict="eps", ending=ending)


def lms(ending: str = "full", order: int = 4) -> Multistep:
    """Linear multistep: the polynomial lives in sigma / alpha. The same as rho-DEIS and as iPNDM with variable steps."""
    return Multistep(order, predict="eps", coordinate="ratio", ending=ending)


def ipndm(ending: str = "full", order: int = 4) -> Multistep:
    """iPNDM: Adams-Bashforth with the weights of equal steps, (55, -59, 37, -9) / 24 of order 4, on any grid."""
    return Multistep(order, predict="eps", coordinate="step", ending=ending)
