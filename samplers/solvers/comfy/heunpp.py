"""Heun++: slopes of the next two levels, weighted by their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from samplers.path import NoiseLevel
from samplers.sample import State
from samplers.solvers.churn import apply_churn, check_churn
from samplers.solvers.comfy.in_sigma import SigmaSolver
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import Step


@dataclass(frozen=True)
class HeunPlusPlus(SigmaSolver):
    """x_t = x + (sigma_t - sigma_s) sum_k w_k d_k with Euler slopes d_1 at s, d_2 at t and d_3 at the level after t.

    w_2 = sigma_t / (3 sigma_0), w_3 = sigma_after / (3 sigma_0) and w_1 the rest, sigma_0 the first level of the run; with one
    level left after t only w_2 = sigma_t / (2 sigma_0), with none a Euler step. So three evaluations a step, two in the last
    but one, one in the last. It is of first order: the weights are of the noise, not of the step. Churn as in `Heun`.

    It needs to know the levels of the run: `trajectory` says them; without it, ValueError.
    Source: the sampler Heun++2 of AUTOMATIC1111's and ComfyUI's users.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_churn(self)

    def advance(self, step: Step, state: State) -> State:
        levels = step.context.levels or state.carry or ()  # a state that is gone on with knows those of its run
        steps = step.context.steps or max(len(levels) - 1, 0)
        step = replace(step, context=replace(step.context, levels=levels, steps=steps))
        return replace(super().advance(step, state), carry=levels)

    def in_sigma(self, step: Step, state: State) -> State:
        levels = step.context.levels
        left = [v.sigma for v in levels if v.sigma < step.t.sigma]
        if step.t.sigma and not any(v.sigma == step.t.sigma for v in levels):
            raise ValueError(
                "Heun++ looks two levels ahead and was not told the run's levels: use `sample` or `trajectory`, or give "
                "context=Context(levels=...)."
            )
        state, s = apply_churn(self, step.denoiser.path, state, step.s, step.context, step.noise)
        ask = (step.condition, step.context)
        first = evaluate(step.denoiser, state, s, *ask)
        dt = step.t.sigma - s.sigma
        if s.alpha == 0 or not left:
            return replace(state, x=first.x0 + step.t.sigma * first.eps, prediction=first)
        ahead = state.x + dt * first.eps
        second = step.denoiser(ahead, step.t, *ask)
        start = levels[0].sigma if levels[0].alpha else math.inf
        if len(left) == 1:
            w2, w3, third = step.t.sigma / (2 * start), 0.0, None
        else:
            after = NoiseLevel(left[0], 1.0, left[0])
            third = step.denoiser(ahead + (after.sigma - step.t.sigma) * second.eps, after, *ask)
            w2, w3 = step.t.sigma / (3 * start), after.sigma / (3 * start)
        slope = (1 - w2 - w3) * first.eps + w2 * second.eps
        if third is not None:
            slope = slope + w3 * third.eps
        return replace(state, x=state.x + dt * slope, prediction=first)
