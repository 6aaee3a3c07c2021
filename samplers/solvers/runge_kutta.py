"""Explicit Runge-Kutta on the path's own clock: dx/dt = flow(x, t), the solvers of flow matching."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.tableaus import TABLEAUS
from samplers.wrappers import PlainSolver, Step

METHODS = ("midpoint", "heun", "ralston", "rk4")


@dataclass(frozen=True)
class RungeKutta(PlainSolver):
    """One step of a tableau (midpoint, heun, ralston or rk4) in the path's clock t: as many evaluations as it has stages.

    Unlike a solver in log-SNR it depends on the path's clock: on a rectified flow it is what flow matching calls by these
    names. Pure noise is an ordinary level here. A step to clean data goes straight to the predicted x0, with one evaluation:
    on a rectified flow that is an Euler step, and the model is never asked at t = 0.

    Source: arXiv 2210.02747, equation 1; the tableaus are the textbook ones.
    """

    method: str = "midpoint"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"Unknown Runge-Kutta method {self.method!r}: choose one of {', '.join(METHODS)}.")

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context = step.denoiser, step.s, step.t, step.condition, step.context
        if s.t == t.t or s.sigma == 0:
            raise ValueError(f"Cannot step from clock {s.t} to {t.t}: levels must differ, and clean data is where a run ends.")
        path, tableau, dt = denoiser.path, TABLEAUS[self.method], t.t - s.t
        first = evaluate(denoiser, state, s, condition, context)
        if t.sigma == 0:
            return replace(state, x=t.mix(first.x0, first.eps), prediction=first)
        slopes = [first.flow(path)]  # equation 1 (arXiv 2210.02747): dx/dt = flow
        for node, row in zip(tableau.nodes[1:], tableau.stages[1:], strict=True):
            level = t if node == 1 else path(s.t + node * dt)
            slopes.append(denoiser(_along(state.x, dt, slopes, row), level, condition, context).flow(path))
        return replace(state, x=_along(state.x, dt, slopes, tableau.weights), prediction=first)


def _along(x: Tensor, dt: float, slopes: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """x + dt times the weighted slopes."""
    for slope, weight in zip(slopes, weights, strict=True):
        if weight:
            x = torch.add(x, slope, alpha=dt * weight)
    return x
