"""RES, ancestral and under CFG++."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from samplers.noise import need_noise
from samplers.sample import State
from samplers.solvers.comfy.ancestral import down_and_up
from samplers.solvers.comfy.in_sigma import SigmaSolver, noisier
from samplers.solvers.comfy.null_branch import null_branch
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import adams_weights
from samplers.wrappers import Step


@dataclass(frozen=True)
class RESMultistep(SigmaSolver):
    """x = e^{-h} x_s + (1 - e^{-h} - b) x0 + b x0_before with h = log(sigma_s / down): two points, exact coefficients.

    down is the level of an ancestral step, and so was the one that the last step went to: x0_before lies at
    log(sigma_before / down_before) before s, so that b is that of nodes in units of h. cfg_pp: the two x0 are those of the
    unconditional branch, and x_s first moves by x0_guided - x0_null; the first step, and the last, are those of Euler.

    Source: arXiv 2308.02157, equation 8 (RES multistep); arXiv 2406.08070 (CFG++).
    """

    eta: float = 1.0
    s_noise: float = 1.0
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"RESMultistep got eta={self.eta}; give 0 <= eta <= 1.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"RESMultistep got s_noise={self.s_noise}; give a finite factor of at least 0.")

    @property
    def both_branches(self) -> bool:
        return self.cfg_pp

    def in_sigma(self, step: Step, state: State) -> State:
        s, t = step.s, step.t
        guided = evaluate(step.denoiser, state, s, step.condition, step.context)
        led = null_branch(guided) if self.cfg_pp else guided
        history = state.remember(s, led.x0, 2)
        down, _, up = down_and_up(s.sigma if s.alpha else math.inf, t.sigma, self.eta, False) if s.alpha else (t.sigma, 1, 0.0)
        before = noisier(state, s, 1)
        if down == 0 or not before or not s.alpha:
            x = guided.x0 + down * led.eps
        else:
            h = math.log(s.sigma / down)
            was, _, _ = down_and_up(before[0].level.sigma, s.sigma, self.eta, False)
            node = (math.log(was) - math.log(before[0].level.sigma)) / h if was else -math.inf
            new, old = adams_weights(h, (0.0, node)) if node > -math.inf else (-math.expm1(-h), 0.0)
            x = state.x + (guided.x0 - led.x0) if self.cfg_pp else state.x
            x = math.exp(-h) * x + new * led.x0 + old * before[0].x0  # equation 8 (arXiv 2308.02157)
        if up and self.s_noise:
            x = x + self.s_noise * up * need_noise(step.noise, f"eta={self.eta}")(s, t)
        return replace(state, x=x, prediction=guided, history=history)
