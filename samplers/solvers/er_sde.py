"""ER-SDE-Solver: extended reverse-time SDEs, solved with the polynomial in sigma / alpha.

In y = x / alpha and r = sigma / alpha a whole family of reverse SDEs has the marginals of the process, one for each noise
scale function phi, and from level s to t each has the exact solution

    y_t = phi_t / phi_s y_s + integral_s^t x0(r) d(phi_t / phi(r)) + sqrt(r_t^2 - (r_s phi_t / phi_s)^2) z           (1)

(arXiv 2309.06169, Proposition 2). phi = r is the ODE, phi = r^2 the usual reverse SDE, and phi = r (e^{r^0.3} + 10) the
authors' choice, which adds little noise at low noise levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, check_falling
from samplers.sample import State
from samplers.solvers.ending import check_ending, is_bounded
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import lagrange_weights
from samplers.wrappers import PlainSolver, Step

# log(phi(r) / r): constant for the ODE, whose noise is then exactly zero
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "er": lambda r: torch.logaddexp(r**0.3, torch.tensor(math.log(10), dtype=r.dtype)),
    "ode": torch.zeros_like,
    "sde": torch.log,
}
RULES = ("exact", "published")


@lru_cache(maxsize=1)
def _gauss_legendre(points: int = 16) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [-1, 1]: eigenvalues and first components of the Jacobi matrix (Golub and Welsch, 1969)."""
    n = torch.arange(1, points, dtype=torch.float64)
    nodes, vectors = torch.linalg.eigh(torch.diag(n / (4 * n**2 - 1).sqrt(), -1))
    return nodes, 2 * vectors[0] ** 2


def _growth(scale: str, r_s: float, r_t: float) -> float:
    """log of (phi_t / r_t) / (phi_s / r_s)."""
    at_s, at_t = SCALES[scale](torch.tensor([r_s, r_t], dtype=torch.float64)).tolist()
    return at_t - at_s


@lru_cache(maxsize=1 << 14)
def er_moments(scale: str, r_s: float, r_t: float, count: int) -> tuple[float, ...]:
    """m_k = integral_s^t w^k d(phi_t / phi) for k < count, with w = (r - r_s) / (r_t - r_s) from 0 to 1.

    By parts m_k = 1 - k integral_0^1 w^{k - 1} phi_t / phi dw for k > 0; this is smooth in log r, where Gauss-Legendre
    quadrature, one panel of 16 points for each factor of e in r, is exact to rounding.
    """
    length = math.log(r_t / r_s)
    moments = [-math.expm1(length + _growth(scale, r_s, r_t))]
    if count > 1:
        nodes, weights = _gauss_legendre()
        panels = math.ceil(abs(length))
        half = length / panels / 2
        u = (half * (2 * torch.arange(panels, dtype=torch.float64)[:, None] + 1 + nodes)).flatten()  # log(r / r_s)
        w, dw = u.expm1() / math.expm1(length), u.exp() / math.expm1(length) * half * weights.repeat(panels)
        log_phi = u + SCALES[scale](r_s * u.exp())
        end = length + SCALES[scale](torch.tensor(r_t, dtype=torch.float64))
        share = (end - log_phi).exp() * dw  # phi_t / phi dw
        moments += [1 - k * (w ** (k - 1) * share).sum().item() for k in range(1, count)]
    return tuple(moments)


@dataclass(frozen=True)
class ERSDE(PlainSolver):
    """Equation (1) with x0 a polynomial in r through the `order` latest predictions: one evaluation per step.

    scale: the noise scale function, "er", "sde" or "ode". rule="exact" interpolates; "published" is the paper's Taylor form,
    whose derivatives are differences taken at the start of the step, which keeps ER-SDE-Solver-3 at second order.
    s_noise scales z. Steps from pure noise and to clean data are first-order steps, their exact limit. ending: how many points
    a long step keeps, see `samplers.solvers.ending`.

    Source: arXiv 2309.06169, Algorithms 1 to 3 (equations 19 to 21); on every path through y and r.
    """

    order: int = 3
    scale: str = "er"
    rule: str = "exact"
    s_noise: float = 1.0
    ending: str = "full"

    def __post_init__(self) -> None:
        check_ending(self.ending, "ERSDE")
        if self.order not in (1, 2, 3) or isinstance(self.order, bool):
            raise ValueError(f"ERSDE got order={self.order!r}; choose 1, 2 or 3.")
        if self.scale not in SCALES:
            raise ValueError(f"Unknown noise scale {self.scale!r}: choose one of {', '.join(SCALES)}.")
        if self.rule not in RULES:
            raise ValueError(f"Unknown rule {self.rule!r}: choose one of {', '.join(RULES)}.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"ERSDE got s_noise={self.s_noise}; give a finite factor of at least 0.")

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        check_falling(s, t)
        keep, spread = self._transition(s, t)
        if spread and noise is None:
            raise ValueError("ER-SDE adds noise: pass noise=, for instance seeded_noise(seeds, x), or choose scale='ode'.")
        prediction = evaluate(denoiser, state, s, condition, context)
        history = state.remember(s, prediction.x0, self.order)

        x = keep * state.x if keep else torch.zeros_like(state.x)  # equation (1), term by term
        r_s, r_t, nodes = noise_ratio(s), noise_ratio(t), [0.0]
        points = [history[-1]]
        for e in reversed(history[:-1]):
            place = (noise_ratio(e.level) - r_s) / (r_t - r_s) if r_s < math.inf and r_t else -math.inf
            if -math.inf < place < nodes[-1]:
                points.append(e)
                nodes.append(place)
        if self.ending == "count" and context.steps:
            del points[max(context.steps - context.step, 1) :], nodes[max(context.steps - context.step, 1) :]
        weights = self._weights(r_s, r_t, tuple(nodes))
        while self.ending == "bounded" and not is_bounded(weights, t.logsnr - s.logsnr):
            weights = self._weights(r_s, r_t, tuple(nodes[: len(weights) - 1]))
        for e, weight in zip(points, weights, strict=False):
            x = torch.add(x, e.x0, alpha=t.alpha * weight)
        if spread and noise is not None:
            x = torch.add(x, noise(s, t), alpha=spread)
        return replace(state, x=x, prediction=prediction, history=history)

    def _transition(self, s: NoiseLevel, t: NoiseLevel) -> tuple[float, float]:
        """(factor of x_s, amplitude of z)."""
        if not t.sigma:
            return 0.0, 0.0
        if not s.alpha:
            return (t.sigma / s.sigma, 0.0) if self.scale == "ode" else (0.0, self.s_noise * t.sigma)
        growth = _growth(self.scale, noise_ratio(s), noise_ratio(t))
        return t.sigma / s.sigma * math.exp(growth), self.s_noise * t.sigma * math.sqrt(-math.expm1(2 * growth))

    def _moments(self, r_s: float, r_t: float, count: int) -> tuple[float, ...]:
        return er_moments(self.scale, r_s, r_t, count)

    def _weights(self, r_s: float, r_t: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
        """Factors of x0 at the nodes, newest first; they sum to 1 - phi_t / phi_s."""
        if r_s == math.inf or r_t == 0:
            return (1.0,)
        moments = self._moments(r_s, r_t, len(nodes))
        if self.rule == "exact" or len(nodes) < 3:
            return lagrange_weights(nodes, moments)
        # published: x0 + w D1 + w^2 D2 with the divided differences D1 = x0[0, 1] and D2 = x0[0, 1, 2]
        _, a, b = nodes
        first = (-1 / a, 1 / a, 0.0)
        second = (1 / (a * b), 1 / (a * (a - b)), 1 / (b * (b - a)))
        return tuple(moments[0] * (j == 0) + moments[1] * first[j] + moments[2] * second[j] for j in range(3))
