"""How many remembered predictions a polynomial may pass through where a step is long.

A solver with memory replaces the integral over a step by sum_j b_j x0_j, so an error in the predictions comes out as much as

    amplification = sum_j |b_j| / |sum_j b_j|

times larger. On equal short steps that is 1, 2, 11/3 and 20/3 for one to four predictions (the Adams-Bashforth methods). On a
step that is much longer than those before it, as most grids have before clean data, it grows with a power of their ratio, and
the run ends worse than Euler's. `python -m tests.benchmarks.endings` measures the endings on paths, grids and numbers of steps.
"""

from __future__ import annotations

import math
from collections.abc import Collection

# full     all points, whatever the step: the formulas as their papers and k-diffusion have them.
# bounded  a long step gives up its oldest points until the k that are left amplify at most 2 k - 1 times.
# count    no more points than there are steps left: diffusers' lower_order_final, ComfyUI's uni_pc and sa_solver.
ENDINGS = ("full", "bounded", "count")

LONG = 0.3  # in log-SNR; shorter steps keep their points, so that a solver keeps its order on every grid
VERY_LONG = 1.0


def check_ending(ending: str, solver: str) -> None:
    """ValueError for an ending that does not exist."""
    if ending not in ENDINGS:
        raise ValueError(f"{solver} got ending={ending!r}: choose one of {', '.join(ENDINGS)}.")


def is_bounded(weights: Collection[float], h: float, alone: Collection[float] | None = None) -> bool:
    """Whether the weights of k points, one each, may stand on a step of h in log-SNR.

    alone: the weight that the newest point has on its own; the sum of the weights where that is None.
    """
    k = len(weights)
    if k == 1 or not LONG < abs(h) < math.inf:
        return True
    limit = 1 + 2 * (k - 1) * min(1.0, VERY_LONG / abs(h))
    return math.fsum(map(abs, weights)) <= limit * abs(math.fsum(weights if alone is None else alone))
