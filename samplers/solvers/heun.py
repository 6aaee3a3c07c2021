"""Heun's method with churn: EDM's Algorithm 2, on any path."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from samplers.noise_ratio import noise_ratio
from samplers.path import check_falling
from samplers.sample import State
from samplers.solvers.churn import apply_churn, check_churn
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import PlainSolver, Step


@dataclass(frozen=True)
class Heun(PlainSolver):
    """The trapezoidal rule on dy/dr = eps with y = x / alpha and r = sigma / alpha: two evaluations per step.

    In these coordinates every path is EDM's x0 + r eps, so churn and its bounds mean the same on all of them: r is raised to
    r (1 + gamma), gamma = min(s_churn / steps, sqrt 2 - 1), where s_tmin <= r <= s_tmax, with noise of standard deviation
    s_noise. Steps from pure noise and to clean data are Euler steps, with one evaluation.

    Source: arXiv 2206.00364, Algorithm 2.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_churn(self)

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        check_falling(s, t)
        state, s = apply_churn(self, denoiser.path, state, s, context, noise)

        first = evaluate(denoiser, state, s, condition, context)
        if s.alpha == 0 or t.sigma == 0:
            return replace(state, x=t.mix(first.x0, first.eps), prediction=first)
        dr, kept = noise_ratio(t) - noise_ratio(s), t.alpha / s.alpha * state.x
        euler = torch.add(kept, first.eps, alpha=t.alpha * dr)  # line 8
        second = denoiser(euler, t, condition, context)
        x = torch.add(kept, first.eps + second.eps, alpha=t.alpha * dr / 2)  # line 11
        return replace(state, x=x, prediction=first)
