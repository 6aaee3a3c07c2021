"""CFG++ as ComfyUI has it: Euler, and DPM-Solver++(2M)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.noise import need_noise
from samplers.sample import State
from samplers.solvers.comfy.in_sigma import SigmaSolver, noisier
from samplers.solvers.comfy.null_branch import null_branch
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep
from samplers.wrappers import SolverWrapper, Step


@dataclass(frozen=True)
class EulerCFGPlusPlus(SolverWrapper):
    """x_t = alpha_t x0_guided + DDIM's share of eps_null + noise: eta and s_noise as in DDIM; on all paths the same.

    From pure noise eta is a share of the noise as anywhere; ComfyUI's code meets 0 / 0 there and adds all of it.

    Source: arXiv 2406.08070, Algorithm 2.
    """

    eta: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        _ = self.process

    @property
    def both_branches(self) -> bool:
        return True

    @property
    def process(self) -> Multistep:
        return Multistep(1, eta=self.eta, noise="ancestral", s_noise=self.s_noise)

    def init(self, x: Tensor) -> State:
        return State(x)

    def advance(self, step: Step, state: State) -> State:
        keep, spread, _ = self.process.transition(step.s, step.t)
        if spread:
            need_noise(step.noise, f"eta={self.eta}")
        guided = evaluate(step.denoiser, state, step.s, step.condition, step.context)
        x = step.t.alpha * guided.x0
        if keep:
            x = torch.add(x, state.x - step.s.alpha * null_branch(guided).x0, alpha=keep)  # Algorithm 2 (arXiv 2406.08070)
        if spread and step.noise is not None:
            x = torch.add(x, step.noise(step.s, step.t), alpha=spread)
        return replace(state, x=x, prediction=guided)


@dataclass(frozen=True)
class TwoStepCFGPlusPlus(SigmaSolver):
    """x_t = x0_guided + e^{-h} (x_s - x0_null) + (1 - e^{-h}) (x0_guided - x0_null_before) / 2 r: 2M under CFG++.

    h is the step in log sigma, r the last one over it. The difference is one of the guided image and of the last unconditional
    one, as ComfyUI has it. The first and the last step have none.
    """

    @property
    def both_branches(self) -> bool:
        return True

    def in_sigma(self, step: Step, state: State) -> State:
        s, t = step.s, step.t
        guided = evaluate(step.denoiser, state, s, step.condition, step.context)
        null = null_branch(guided)
        history = state.remember(s, null.x0, 2)
        if t.sigma == 0 or s.alpha == 0:
            return replace(state, x=guided.x0 + t.sigma * null.eps, prediction=guided, history=history)
        x = guided.x0 + t.sigma / s.sigma * (state.x - null.x0)
        for before in noisier(state, s, 1):
            h, last = math.log(s.sigma / t.sigma), math.log(before.level.sigma / s.sigma)
            x = x - math.expm1(-h) * h / (2 * last) * (guided.x0 - before.x0)
        return replace(state, x=x, prediction=guided, history=history)
