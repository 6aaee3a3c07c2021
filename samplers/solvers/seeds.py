"""SEEDS: the reverse SDE through points inside each step, with noise that follows one path.

Equation (18) of `samplers.solvers.dpm_solver_pp` with x0 read at the nodes r1 (and r2), and at every node the noise of the way
there: x at a node is conditioned on what was drawn for the nodes before it.

Source: arXiv 2305.14267, Algorithms 2 and 4.
"""

from __future__ import annotations

from samplers.solvers.singlestep import Singlestep


def seeds_2(r1: float | None = None, eta: float = 1.0, s_noise: float = 1.0) -> Singlestep:
    """SEEDS-2: two evaluations a step, the inner one at r1 = 1/2. eta: strength tau^2 of the noise."""
    return Singlestep(2, eta=eta, r1=r1, s_noise=s_noise)


def seeds_3(r1: float | None = None, r2: float | None = None, eta: float = 1.0, s_noise: float = 1.0) -> Singlestep:
    """SEEDS-3: three evaluations a step, the inner ones at r1 = 1/3 and r2 = 2/3. eta: strength tau^2 of the noise."""
    return Singlestep(3, eta=eta, r1=r1, r2=r2, s_noise=s_noise)
