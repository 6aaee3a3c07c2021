"""Ancestral steps: to a level below t, and back up with new noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from samplers.noise import need_noise
from samplers.prediction import Prediction
from samplers.sample import State
from samplers.solvers.comfy.in_sigma import SigmaSolver
from samplers.solvers.comfy.null_branch import null_branch
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import Step

KINDS = ("euler", "dpm_2", "dpmpp_2s")
NEAR_PURE_NOISE = 0.9999  # the middle of a step of dpmpp_2s from sigma = 1 on a flow


def down_and_up(s: float, t: float, eta: float, flow: bool) -> tuple[float, float, float]:
    """(level to step down to, factor of what is there, amplitude of the noise that brings it to t), for sigmas s > t.

    Off flows x keeps its scale, and down^2 + up^2 = t^2 with up = eta t sqrt(1 - (t / s)^2): k-diffusion's ancestral step. On a
    flow down = t (1 + (t / s - 1) eta), and x is scaled by (1 - t) / (1 - down) on the way up, which keeps the marginals.
    """
    if flow:
        down = t * (1 + (t / s - 1) * eta)
        keep = (1 - t) / (1 - down)
        return down, keep, math.sqrt(max(t**2 - (keep * down) ** 2, 0.0))
    up = min(t, eta * math.sqrt(t**2 * (s**2 - t**2) / s**2))
    return math.sqrt(t**2 - up**2), 1.0, up


@dataclass(frozen=True)
class Ancestral(SigmaSolver):
    """Euler, DPM-Solver-2 or DPM-Solver++(2S) down to `down_and_up`'s level, then noise, as ComfyUI has them on every path.

    kind: euler, one evaluation; dpm_2, the slope at the middle of log sigma; dpmpp_2s, x0 at the middle of log-SNR.
    cfg_pp, for dpmpp_2s: the step is that of the unconditional branch, and the image then moves by alpha_t times the
    x0_guided - x0_null of its start.
    """

    kind: str = "euler"
    eta: float = 1.0
    s_noise: float = 1.0
    cfg_pp: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown ancestral step {self.kind!r}: choose one of {', '.join(KINDS)}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Ancestral got eta={self.eta}; give 0 <= eta <= 1.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"Ancestral got s_noise={self.s_noise}; give a finite factor of at least 0.")

    @property
    def both_branches(self) -> bool:
        return self.cfg_pp

    def in_sigma(self, step: Step, state: State) -> State:
        s, t, flow = step.s, step.t, getattr(step.denoiser.path, "flow", False)
        first = evaluate(step.denoiser, state, s, step.condition, step.context)
        if t.sigma == 0:
            return replace(state, x=first.x0, prediction=first)
        start = s.sigma if s.alpha else math.inf
        down, keep, up = down_and_up(start, t.sigma, self.eta, flow) if s.alpha else (0.0, 1.0, t.sigma)
        led = null_branch(first) if self.cfg_pp else first
        x = self._down(step, state, led, down, flow)
        if up and self.s_noise:
            x = keep * x + self.s_noise * up * need_noise(step.noise, f"eta={self.eta}")(s, t)
        else:
            x = keep * x
        if self.cfg_pp:
            x = x + (1 - t.sigma if flow else 1.0) * (first.x0 - led.x0)
        return replace(state, x=x, prediction=first)

    def _down(self, step: Step, state: State, led: Prediction, down: float, flow: bool) -> Tensor:
        """x at the level `down`."""
        s = step.s
        if s.alpha == 0 or down == 0:
            return led.x0 + down * led.eps
        if self.kind == "euler":
            return state.x + (down - s.sigma) * led.eps
        middle = math.sqrt(s.sigma * down)
        if self.kind == "dpmpp_2s" and flow:
            odds = math.sqrt(s.sigma / (1 - s.sigma) * down / (1 - down)) if s.sigma < 1 else math.inf
            middle = odds / (1 + odds) if odds < math.inf else NEAR_PURE_NOISE
        there = step.denoiser.path(middle)
        second = step.denoiser(state.x + (middle - s.sigma) * led.eps, there, step.condition, step.context)
        second = null_branch(second) if self.cfg_pp else second
        if self.kind == "dpm_2":
            return state.x + (down - s.sigma) * second.eps
        kept = down / s.sigma
        return kept * state.x + (1 - kept) * second.x0
