"""PNDM: linear multistep on the noise prediction, with a proper first step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import State
from samplers.solvers.ending import VERY_LONG, check_ending
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep
from samplers.solvers.ratio import noise_ratio

WARMUPS = ("heun", "runge_kutta")


def transfer(x: Tensor, eps: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """x_t with eps constant from s to t (equation 11 of the paper: DDIM's step), both levels with alpha > 0."""
    return torch.add(t.alpha / s.alpha * x, eps, alpha=t.alpha * (noise_ratio(t) - noise_ratio(s)))


@dataclass(frozen=True)
class PNDM:
    """Adams-Bashforth on eps as if all steps were equally long, of order 4, each change of x by DDIM's exact `transfer`.

    warmup="heun" is PLMS, diffusers' skip_prk_steps=True: the first step averages eps at both of its ends, and the orders 2
    and 3 follow while the history grows; N + 1 evaluations for N steps. warmup="runge_kutta" takes the first three steps by
    the paper's pseudo Runge-Kutta with four evaluations each, the middle ones half-way on the path's clock; N + 9.
    ending: how many points a long step keeps, see `samplers.solvers.ending`.
    A warm-up step from pure noise or to clean data is a plain step, with one evaluation; so is a very long one, with the ending
    "bounded".

    Source: arXiv 2202.09778, equations 12 and 13.
    """

    warmup: str = "heun"
    ending: str = "full"

    def __post_init__(self) -> None:
        check_ending(self.ending, "PNDM")
        if self.warmup not in WARMUPS:
            raise ValueError(f"Unknown warmup {self.warmup!r}: choose one of {', '.join(WARMUPS)}.")

    def init(self, x: Tensor) -> State:
        return State(x)

    def step(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> State:
        linear = Multistep(4, of="eps", coordinate="step", ending=self.ending)
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
            eps = (first.eps + 2 * (second + third) + eps_at(third, t)) / 6
        history = state.remember(s, first.x0, 4, first.eps)
        return replace(state, x=transfer(state.x, eps, s, t), prediction=first, history=history)
