"""Churn: a little fresh noise before each step (EDM, Algorithm 2), for any solver."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from samplers.denoiser import Context
from samplers.noise import NoiseSource
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, Path
from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step


class Churning(Protocol):
    """The settings of churn."""

    @property
    def s_churn(self) -> float: ...
    @property
    def s_tmin(self) -> float: ...
    @property
    def s_tmax(self) -> float: ...
    @property
    def s_noise(self) -> float: ...


def apply_churn(
    churn: Churning, path: Path, state: State, s: NoiseLevel, context: Context, noise: NoiseSource | None
) -> tuple[State, NoiseLevel]:
    """(state, level) with the noise raised from r to r (1 + gamma), or as they were where churn does not act."""
    r = noise_ratio(s)
    if not churn.s_churn or not churn.s_tmin <= r <= churn.s_tmax or r == math.inf:
        return state, s
    if noise is None:
        name = type(churn).__name__
        raise ValueError(f"{name} with s_churn={churn.s_churn} adds noise: pass noise=, e.g. seeded_noise(seeds, x).")
    raised = min(r * (1 + min(churn.s_churn / max(context.steps, 1), math.sqrt(2) - 1)), _noisiest(path))  # line 5
    if raised <= r:
        return state, s
    hat = path.at_logsnr(-math.log(raised))
    fresh = churn.s_noise * hat.alpha * math.sqrt(raised**2 - r**2)
    x = torch.add(hat.alpha / s.alpha * state.x, noise(s, hat), alpha=fresh)  # line 6
    return replace(state, x=x), hat


def check_churn(churn: Churning) -> None:
    """ValueError for settings that make no churn."""
    name = type(churn).__name__
    for setting, value in (("s_churn", churn.s_churn), ("s_noise", churn.s_noise)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} got {setting}={value}; give a finite number of at least 0.")
    if not churn.s_tmin <= churn.s_tmax:
        raise ValueError(f"{name} got s_tmin={churn.s_tmin} and s_tmax={churn.s_tmax}; give s_tmin <= s_tmax.")


def _noisiest(path: Path) -> float:
    """The sigma / alpha that churn may reach. A clock that ends is never left; a network on sigma itself is asked above the
    sigma_max where sampling starts, as in EDM."""
    last = path(path.t_noise)
    return math.inf if last.t == last.sigma and last.alpha == 1 else noise_ratio(last)


@dataclass(frozen=True)
class ChurnedSolver(SolverWrapper):
    """Raises the noise from r = sigma / alpha to r (1 + gamma) before each step of `inner`, where s_tmin <= r <= s_tmax.

    gamma = min(s_churn / steps, sqrt 2 - 1), the fresh noise has standard deviation s_noise times what the rise calls for. The
    inner solver must take a state as it comes: one without memory (Singlestep), since its last result is not what it gets.

    Source: arXiv 2206.00364, Algorithm 2, lines 4 to 6.
    """

    inner: Solver
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_churn(self)

    def advance(self, step: Step, state: State) -> State:
        state, s = apply_churn(self, step.denoiser.path, state, step.s, step.context, step.noise)
        return step.by(self.inner, state, s=s)
