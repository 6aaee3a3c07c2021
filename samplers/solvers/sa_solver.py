"""SA-Solver: stochastic Adams methods of any noise strength, predictor and corrector.

    x_t = (sigma_t / sigma_s) e^{-tau^2 h} x_s + alpha_t sum_j b_j x0_j + sigma_t sqrt(1 - e^{-2 tau^2 h}) z          (14)

with b_j the integral over the step of (1 + tau^2) e^{-(1 + tau^2)(logsnr_t - l)} times the j-th Lagrange polynomial. The
corrector (17) has the prediction made at t among the points.

Source: arXiv 2309.05019, Algorithm 1. ComfyUI's form, with noise in a part of the run, is in
`samplers.solvers.comfy.predictor_corrector`.
"""

from __future__ import annotations

from samplers.solvers.multistep import Multistep


def sa_solver(
    ending: str = "bounded", order: int = 3, corrector_order: int = 4, eta: float = 1.0, s_noise: float = 1.0
) -> Multistep:
    """SA-Solver with the same noise strength throughout.

    ending: what a long step keeps of its memory, see `samplers.solvers.ending`.
    order: points of the predictor. corrector_order: points of the corrector, the new one included; 0 for none.
    eta: tau^2; 0 is the ODE. s_noise: factor on z.
    """
    return Multistep(order, eta=eta, corrector_order=corrector_order, s_noise=s_noise, ending=ending)
