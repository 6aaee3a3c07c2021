"""Gradient estimation: Euler on a slope that runs ahead."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from samplers.sample import State
from samplers.solvers.comfy.in_sigma import SigmaSolver, noisier
from samplers.solvers.comfy.null_branch import null_branch
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import Step


@dataclass(frozen=True)
class GradientEstimation(SigmaSolver):
    """x_t = x + (sigma_t - sigma_s) (d + (gamma - 1) (d - d_before)), with d = (x - x0) / sigma: one evaluation per step.

    gamma 1 is Euler, 2 the published choice. cfg_pp: d is that of the unconditional branch and x0 the guided one, so that a
    step is x0_guided + sigma_t d and the same correction. The first step has none, the last is x0.

    Source: arXiv 2306.04848, equation 15 and Algorithm 2 (whose gamma weighs the new slope against the last one).
    """

    gamma: float = 2.0
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        if not math.isfinite(self.gamma):
            raise ValueError(f"GradientEstimation got gamma={self.gamma}; give a finite number, 2 as published.")

    @property
    def both_branches(self) -> bool:
        return self.cfg_pp

    def in_sigma(self, step: Step, state: State) -> State:
        s, t = step.s, step.t
        prediction = evaluate(step.denoiser, state, s, step.condition, step.context)
        slope = null_branch(prediction) if self.cfg_pp else prediction
        history = state.remember(s, prediction.x0, 2, slope.eps if s.alpha else None)
        if t.sigma == 0 or s.alpha == 0:
            x = prediction.x0 + t.sigma * slope.eps
        else:
            dt = t.sigma - s.sigma
            x = prediction.x0 + t.sigma * slope.eps if self.cfg_pp else state.x + dt * slope.eps
            for before in (e.eps for e in noisier(state, s, 1) if e.eps is not None):
                x = x + (self.gamma - 1) * dt * (slope.eps - before)  # equation 15 (arXiv 2306.04848)
        return replace(state, x=x, prediction=prediction, history=history)
