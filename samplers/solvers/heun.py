"""Heun's method with churn: EDM's Algorithm 2, on any path."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import State
from samplers.solvers.evaluate import evaluate


def _ratio(level: NoiseLevel) -> float:
    """sigma / alpha, the noise level of EDM; infinite at pure noise."""
    return level.sigma / level.alpha if level.alpha else math.inf


@dataclass(frozen=True)
class Heun:
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
        for name in ("s_churn", "s_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Heun got {name}={getattr(self, name)}; give a finite number of at least 0.")
        if not self.s_tmin <= self.s_tmax:
            raise ValueError(f"Heun got s_tmin={self.s_tmin} and s_tmax={self.s_tmax}; give s_tmin <= s_tmax.")

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
        if not t.logsnr > s.logsnr:
            raise ValueError(f"Cannot step from logsnr {s.logsnr} to {t.logsnr}: levels must fall in noise.")
        r_s, r_t = _ratio(s), _ratio(t)
        if self.s_churn and self.s_tmin <= r_s <= self.s_tmax and r_s < math.inf:
            if noise is None:
                raise ValueError(f"Heun with s_churn={self.s_churn} adds noise: pass noise=, e.g. seeded_noise(seeds, x).")
            r_hat = r_s * (1 + min(self.s_churn / max(context.steps, 1), math.sqrt(2) - 1))  # line 5
            hat = denoiser.path.at_logsnr(-math.log(r_hat))
            x = hat.alpha / s.alpha * state.x  # line 6
            x = torch.add(x, noise(s, hat), alpha=self.s_noise * hat.alpha * math.sqrt(r_hat**2 - r_s**2))
            state, s, r_s = replace(state, x=x), hat, r_hat

        first = evaluate(denoiser, state, s, condition, context)
        if s.alpha == 0 or t.sigma == 0:
            return replace(state, x=t.mix(first.x0, first.eps), prediction=first)
        dr, kept = r_t - r_s, t.alpha / s.alpha * state.x
        euler = torch.add(kept, first.eps, alpha=t.alpha * dr)  # line 8
        second = denoiser(euler, t, condition, context)
        x = torch.add(kept, first.eps + second.eps, alpha=t.alpha * dr / 2)  # line 11
        return replace(state, x=x, prediction=first)
