"""Power-function averages of weights, and averages of any width after training (Karras et al. 2024, arXiv 2312.02696).

After t updates the average of width exponent gamma is

    sum_i w_i theta_i,   w_i = (i / t)^(gamma + 1) - ((i - 1) / t)^(gamma + 1),   i = 1 ... t

which a running average with decay (1 - 1 / t)^(gamma + 1) gives exactly. In continuous time its profile is
p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]; the width is its standard deviation as a share of t.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.config import MAX_WIDTH

Profile = tuple[float, float]  # (step, gamma)


def gamma_of(width: float) -> float:
    """The exponent whose profile has this relative standard deviation: the largest real root of (eq. 126, Algorithm 2)

    gamma^3 + 7 gamma^2 + (16 - width^-2) gamma + (12 - width^-2) = 0.
    """
    if not 0 < width < MAX_WIDTH:
        raise ValueError(f"The width of an average is {width}; it must lie between 0 and {MAX_WIDTH}.")
    inverse = width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def decay(gamma: float, step: int) -> float:
    """The running average's decay at a step (0-based), so that the first one takes the weights as they are."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


def inner(a: Profile, b: Profile) -> float:
    """The integral of p_a p_b over [0, m], m = min(t_a, t_b):

    (g_a + 1) (g_b + 1) / (g_a + g_b + 1)  m^(g_a + g_b + 1) / (t_a^(g_a + 1) t_b^(g_b + 1)).
    """
    (step_a, gamma_a), (step_b, gamma_b) = a, b
    total, least = gamma_a + gamma_b + 1, min(step_a, step_b)
    # as ratios, which neither overflow nor vanish at a million steps
    shape = (least / step_a) ** (gamma_a + 1) * (least / step_b) ** (gamma_b + 1) / least
    return (gamma_a + 1) * (gamma_b + 1) / total * shape


def combination(stored: Sequence[Profile], wanted: Profile) -> list[float]:
    """The weights x of stored averages whose sum comes nearest to the wanted one: min |sum_i x_i p_i - p|^2 (Algorithm 3)."""
    norms = np.array([inner(p, p) for p in stored]) ** 0.5  # unit profiles keep the system well scaled
    gram = np.array([[inner(a, b) for b in stored] for a in stored]) / np.outer(norms, norms)
    target = np.array([inner(p, wanted) for p in stored]) / norms
    return list(np.linalg.lstsq(gram, target, rcond=1e-14)[0] / norms)
