"""RES: the second-order multistep exponential integrator with exact coefficients.

    x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^{-h}) x0_s
          + alpha_t (1 - (1 - e^{-h}) / h) (h / h_before) (x0_s - x0_before)                                      (8)

so that the line through both predictions is integrated exactly, where DPM-Solver++(2M) takes its value in the middle.

Source: arXiv 2308.02157, equation 8.
"""

from __future__ import annotations

from samplers.solvers.multistep import Multistep


def res_multistep(ending: str = "bounded") -> Multistep:
    """RES in two points. ending: what a long step keeps of its memory, see `samplers.solvers.ending`."""
    return Multistep(2, ending=ending)
