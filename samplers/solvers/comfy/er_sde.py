"""ER-SDE-Solver with its integrals as sums over 200 points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from samplers.solvers.er_sde import ERSDE

POINTS = 200
PHI: dict[str, Callable[[Tensor], Tensor]] = {
    "er": lambda r: r * ((r**0.3).exp() + 10.0),
    "ode": lambda r: r,
    "sde": lambda r: r * r,
}


@lru_cache(maxsize=1 << 12)
def summed_moments(scale: str, r_s: float, r_t: float, count: int) -> tuple[float, ...]:
    """`er_moments` by rectangles, each as high as at its cleaner end, in float32: the sums of the published code.

    With S_k = sum of (r - r_s)^k / phi(r) over the points, m_1 = 1 + phi_t S_0 / dr and m_2 = 1 + 2 phi_t S_1 / dr^2, where
    dr = r_t - r_s.
    """
    phi = PHI[scale]
    end, dr = torch.tensor(r_t, dtype=torch.float64), r_t - r_s
    at_end = phi(end)
    width = -dr / POINTS
    moments = [1 - (at_end / phi(torch.tensor(r_s, dtype=torch.float64))).item()]
    r = torch.arange(POINTS, dtype=torch.float32) * width + r_t  # float32, as there
    height = phi(r)
    for k in range(1, count):
        total = (((r - r_s) ** (k - 1)) / height).sum().double().item() * width
        moments.append(1 + k * total * at_end.item() / dr**k)
    return tuple(moments)


@dataclass(frozen=True)
class SummedERSDE(ERSDE):
    """`ERSDE` in the published Taylor form, with `summed_moments`. Source: arXiv 2309.06169 and its code."""

    rule: str = "published"

    def _moments(self, r_s: float, r_t: float, count: int) -> tuple[float, ...]:
        return summed_moments(self.scale, r_s, r_t, count)
