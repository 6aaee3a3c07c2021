"""iPNDM with variable steps and DEIS, as published code computes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch

from samplers.sample import State
from samplers.solvers.comfy.in_sigma import SigmaSolver, noisier
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import Step

RULES = ("ipndm_v", "deis")


def ipndm_v_weights(places: Sequence[float], end: float) -> tuple[float, ...]:
    """Weights of the slopes at `places` (newest first, 1 to 4) for a step of sigma from places[0] to `end`.

    Newton's form of Adams-Bashforth with variable steps, with two slips of the published code kept: the factor of the second
    difference of three points, (1 - u) q / 2, is computed as (1 - u q) / 2, and the last weight of four points takes one ratio
    of steps for another. At even steps neither matters. Exact weights are those of the solver `lms`.
    """
    h = [a - b for a, b in pairwise(places)]
    step = end - places[0]
    weights = [1.0] + [0.0] * (len(places) - 1)
    if len(places) > 1:
        first = step / (2 * h[0])
        weights[0] += first
        weights[1] -= first
    if len(places) > 2:
        u, q = step / (3 * (step + h[0])), step * (step + h[0]) / (h[0] * (h[0] + h[1]))
        second, a = (1 - u * q) / 2, h[0] / h[1]
        for i, part in enumerate((1.0, -(1 + a), a)):
            weights[i] += second * part
    if len(places) > 3:
        sum_3 = h[0] + h[1] + h[2]
        third = (1 - u) / 2 + (1 - step / (2 * (step + h[0]))) * step / (6 * (step + h[0] + h[1]))
        third *= step * (step + h[0]) * (step + h[0] + h[1]) / (h[0] * (h[0] + h[1]) * sum_3)
        b = h[0] * (h[0] + h[1]) / (h[1] * (h[1] + h[2]))
        for i, part in enumerate((1.0, -(1 + a + b), a + b * (1 + h[1] / h[2]), -b * a)):
            weights[i] += third * part
    return tuple(step * w for w in weights)


# the VP process of 1000 levels from sigma 0.002 to 80 in which published DEIS code measures time, whatever the model's
_EPSILON, _LOW, _HIGH = 1e-3, math.log1p(0.002**2), math.log1p(80.0**2)
_BETA_D = 2 * (_LOW / _EPSILON - _HIGH) / (_EPSILON - 1)
_BETA_MIN = _HIGH - 0.5 * _BETA_D
_POINTS = 10_000


def vp_time(sigma: float) -> float:
    """t with 1 + sigma^2 = exp(beta_d t^2 / 2 + beta_min t)."""
    return (math.sqrt(_BETA_MIN**2 + 2 * _BETA_D * math.log1p(sigma**2)) - _BETA_MIN) / _BETA_D


@lru_cache(maxsize=4096)
def deis_weights(places: tuple[float, ...], end: float) -> tuple[float, ...]:
    """Integrals over sigma of the Lagrange polynomials, in VP time, through `places` (newest first), from places[0] to `end`.

    As a sum over 10,000 points, both ends among them, each with the ten-thousandth part of the step: what tAB-DEIS code does.
    One place is the Euler step.
    """
    if len(places) == 1:
        return (end - places[0],)
    nodes = [vp_time(v) for v in places]
    last = vp_time(end)
    tau = torch.linspace(nodes[0], last, _POINTS, dtype=torch.float64)
    log_abar = -(0.5 * _BETA_D * tau**2 + _BETA_MIN * tau)
    rise = 0.5 * (_BETA_D * tau + _BETA_MIN) / (log_abar.exp() * -log_abar.expm1()).sqrt()  # d sigma / d tau
    weights = []
    for j, node in enumerate(nodes):
        polynomial = torch.ones_like(tau)
        for other in (*nodes[:j], *nodes[j + 1 :]):
            polynomial = polynomial * (tau - other) / (node - other)
        weights.append((rise * polynomial).sum().item() * (last - nodes[0]) / _POINTS)
    return tuple(weights)


@dataclass(frozen=True)
class PublishedAdams(SigmaSolver):
    """x_t = x + sum_j w_j d_j over the latest slopes d = (x - x0) / sigma, w by `rule`; the last step is x0.

    rule: ipndm_v, see `ipndm_v_weights`; deis, see `deis_weights` (arXiv 2204.13902, tAB-DEIS). order: 1 to 4 slopes.
    """

    rule: str = "ipndm_v"
    order: int = 4

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"Unknown rule {self.rule!r}: choose one of {', '.join(RULES)}.")
        if self.order not in (1, 2, 3, 4) or isinstance(self.order, bool):
            raise ValueError(f"PublishedAdams got order={self.order!r}; choose 1, 2, 3 or 4.")

    def in_sigma(self, step: Step, state: State) -> State:
        s, t = step.s, step.t
        prediction = evaluate(step.denoiser, state, s, step.condition, step.context)
        history = state.remember(s, prediction.x0, self.order, prediction.eps if s.alpha else None)
        if t.sigma == 0 or s.alpha == 0:
            return replace(state, x=prediction.x0 + t.sigma * prediction.eps, prediction=prediction, history=history)
        before = [(e.level.sigma, e.eps) for e in noisier(state, s, self.order - 1) if e.eps is not None]
        places = (s.sigma, *(sigma for sigma, _ in before))
        weights = (ipndm_v_weights if self.rule == "ipndm_v" else deis_weights)(places, t.sigma)
        x = state.x
        for weight, slope in zip(weights, (prediction.eps, *(eps for _, eps in before)), strict=True):
            x = torch.add(x, slope, alpha=weight)
        return replace(state, x=x, prediction=prediction, history=history)
