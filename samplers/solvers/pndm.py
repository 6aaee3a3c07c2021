"""PNDM: linear multistep on the noise prediction, with a proper first step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel
from samplers.sample import State
from samplers.solvers.ending import VERY_LONG, check_ending
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep, uniform_weights
from samplers.wrappers import PlainSolver, Step

WARMUPS = ("heun", "runge_kutta")
READINGS = ("eps", "v")


def transfer(x: Tensor, eps: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """x_t with eps constant from s to t (equation 11 of the paper: DDIM's step), both levels with alpha > 0."""
    return torch.add(t.alpha / s.alpha * x, eps, alpha=t.alpha * (noise_ratio(t) - noise_ratio(s)))


@dataclass(frozen=True)
class PNDM(PlainSolver):
    """Adams-Bashforth on eps as if all steps were equally long, of order 4, each change of x by DDIM's exact `transfer`.

    warmup="heun" is PLMS, diffusers' skip_prk_steps=True: the first step averages eps at both of its ends, and the orders 2
    and 3 follow while the history grows; N + 1 evaluations for N steps. warmup="runge_kutta" takes the first three steps by
    the paper's pseudo Runge-Kutta with four evaluations each, the middle ones half-way on the path's clock; N + 9.
    ending: how many points a long step keeps, see `samplers.solvers.ending`.
    A warm-up step from pure noise or to clean data is a plain step, with one evaluation; so is a very long one, with the ending
    "bounded".

    predict="v" averages v instead of eps, and reads the average as eps at the step's own x: diffusers' PNDM on a v-prediction
    model. v at two levels is not one quantity, so this is of first order; eps, of which a step is exact, is the paper's. The
    ending is then full.

    Source: arXiv 2202.09778, equations 12 and 13.
    """

    warmup: str = "heun"
    predict: str = "eps"
    ending: str = "full"

    def __post_init__(self) -> None:
        check_ending(self.ending, "PNDM")
        if self.predict not in READINGS:
            raise ValueError(f"PNDM got predict={self.predict!r}; choose one of {', '.join(READINGS)}.")
        if self.warmup not in WARMUPS:
            raise ValueError(f"Unknown warmup {self.warmup!r}: choose one of {', '.join(WARMUPS)}.")

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        if self.predict == "v":
            return self._step_of_v(denoiser, state, s, t, condition, context)
        linear = Multistep(4, predict="eps", coordinate="step", ending=self.ending)
        done = sum(e.step != state.step for e in state.history)
        too_long = self.ending == "bounded" and t.logsnr - s.logsnr > VERY_LONG
        if done >= (1 if self.warmup == "heun" else 3) or s.alpha == 0 or t.sigma == 0 or too_long:
            return linear.step(denoiser, state, s, t, condition, context, noise)
        linear.transition(s, t)  # refuses levels that no solver can step between

        first = evaluate(denoiser, state, s, condition, context)

        def eps_at(eps: Tensor, level: NoiseLevel) -> Tensor:
            return denoiser(transfer(state.x, eps, s, level), level, condition, context).eps

        if self.warmup == "heun":
            eps = (first.eps + eps_at(first.eps, t)) / 2
        else:
            middle = denoiser.path((s.t + t.t) / 2)
            second = eps_at(first.eps, middle)
            third = eps_at(second, middle)
            eps = (first.eps + 2 * (second + third) + eps_at(third, t)) / 6  # equation 13 (arXiv 2202.09778)
        history = state.remember(s, first.x0, 4, first.eps)
        return replace(state, x=transfer(state.x, eps, s, t), prediction=first, history=history)

    def _step_of_v(
        self, denoiser: Denoiser, state: State, s: NoiseLevel, t: NoiseLevel, condition: Condition, context: Context
    ) -> State:
        """`carry` holds the (step, v) of the steps before, oldest first."""
        Multistep(1).transition(s, t)  # refuses levels that no solver can step between
        first = evaluate(denoiser, state, s, condition, context)
        past = [e for e in state.carry or () if e[0] < state.step][-3:]
        kept = (*past, (state.step, first.v))
        warm = len(past) >= (1 if self.warmup == "heun" else 3)
        if s.alpha == 0 or (t.sigma == 0 and not warm):
            return replace(state, x=t.mix(first.x0, first.eps), prediction=first, carry=kept)

        def to(v: Tensor, level: NoiseLevel) -> Tensor:
            return transfer(state.x, s.alpha * v + s.sigma * state.x, s, level)

        def v_at(v: Tensor, level: NoiseLevel) -> Tensor:
            return denoiser(to(v, level), level, condition, context).v

        if warm:
            weights = uniform_weights(tuple(-float(i) for i in range(len(kept))))  # the weights of equation 12
            mean = sum((w * v for w, (_, v) in zip(weights, reversed(kept), strict=True)), torch.zeros_like(state.x))
        elif self.warmup == "heun":
            mean = (first.v + v_at(first.v, t)) / 2
        else:
            middle = denoiser.path((s.t + t.t) / 2)
            second = v_at(first.v, middle)
            third = v_at(second, middle)
            mean = (first.v + 2 * (second + third) + v_at(third, t)) / 6
        return replace(state, x=to(mean, t), prediction=first, carry=kept)
