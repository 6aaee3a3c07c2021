"""Exponential Heun: x0 at both ends of a step, integrated exactly in log-SNR."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from samplers.noise import need_noise
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep, adams_weights
from samplers.solvers.singlestep import advance
from samplers.wrappers import PlainSolver, Step


@dataclass(frozen=True)
class ExponentialHeun(PlainSolver):
    """Equation (1) of `Multistep` over one step, x0 linear between its two ends: the far one is read where the first-order
    step with the step's own noise arrives. Two evaluations a step; of infinite length, the first-order step with one.

    eta: noise strength, tau^2 = eta of the reverse SDE (0 is the ODE); s_noise scales the noise. It is SEEDS-2 (arXiv
    2305.14267) with its node at the end of the step and the exact weights.
    """

    eta: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        _ = self.process

    @cached_property
    def process(self) -> Multistep:
        return Multistep(1, eta=self.eta, s_noise=self.s_noise)

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        keep, spread, span = self.process.transition(s, t)
        if spread:
            need_noise(noise, f"eta={self.eta}")
        first = evaluate(denoiser, state, s, condition, context)
        fresh = spread * noise(s, t) if spread and noise is not None else None

        def arrive(readings: list[Tensor], weights: tuple[float, ...]) -> Tensor:
            x = advance(state.x, s, t, keep, "x0", readings, weights)
            return x if fresh is None else x + fresh

        x = arrive([first.x0], (-math.expm1(-span),))
        if not math.isinf(span):
            second = denoiser(x, t, condition, context)
            x = arrive([first.x0, second.x0], adams_weights(span, (0.0, 1.0)))  # equation (1) of `Multistep`, x0 linear
        return replace(state, x=x, prediction=first)
