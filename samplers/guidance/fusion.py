"""Fusion sampling: moves at each noise level that take a picture's reference in before the step is made (ProFusion)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Denoiser
from samplers.guidance.energy import check_count
from samplers.noise import fork_noise, need_noise
from samplers.path import NoiseLevel
from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step


def fusion_coefficients(s: NoiseLevel, t: NoiseLevel, eta: float) -> tuple[float, float]:
    """(k, m) of a move x - k eps + m n at level s, before the step to t.

    With a-bar = alpha^2 / (alpha^2 + sigma^2), v_s = 1 - a-bar_s and V = eta^2 v_t / v_s (1 - a-bar_s / a-bar_t), the variance
    of DDIM's noise, a move of the paper is x - eps V sqrt(v_s) / v_t + n sqrt(V v_s (2 v_t - V)) / v_t. Here it is written in
    r = V / v_t, which is finite at the last step too, and for a path on which (alpha, sigma) has any length. What is alpha x0 +
    sigma n with eps known keeps its variance: sigma^2 (1 - r)^2 + sigma^2 r (2 - r) = sigma^2.

    Source: arXiv 2305.13579 (fusion stage), as its code has it (`pipeline_stable_diffusion_promptnet.py`).
    """
    length = s.alpha**2 + s.sigma**2
    kept = (s.alpha**2 / length) * (t.alpha**2 + t.sigma**2) / t.alpha**2  # a-bar_s / a-bar_t
    r = eta**2 * (1 - kept) * length / s.sigma**2
    return s.sigma * r, s.sigma * math.sqrt(r * (2 - r))


@dataclass(frozen=True)
class FusionSampling(SolverWrapper):
    """Makes `moves` moves (`fusion_coefficients`) at every level of noise before a step of `inner`, by what `refiner` predicts.

    refiner: a denoiser, guided and shown references otherwise than the run's own; the run's own if None.
    eta: how far a move goes, from 0, which is none, to 1.
    At pure noise, of which a move would make other noise, none is made. Each move costs an evaluation of `refiner` and draws
    noise of its own. Raises ValueError without a noise source.
    """

    inner: Solver
    refiner: Denoiser | None = None
    moves: int = 1
    eta: float = 1.0

    def __post_init__(self) -> None:
        check_count("Fusion sampling", 0, moves=self.moves)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Fusion sampling got eta={self.eta}; give a number from 0 to 1.")

    def advance(self, step: Step, state: State) -> State:
        s, t, x = step.s, step.t, state.x
        if not self.moves or not self.eta or s.alpha == 0:
            return step.by(self.inner, state)
        noise, denoiser = need_noise(step.noise, "fusion sampling"), self.refiner or step.denoiser
        keep, spread = fusion_coefficients(s, t, self.eta)
        for number in range(self.moves):
            eps: Tensor = denoiser(x, s, step.condition, step.context.fork("fusion")).eps
            fresh = fork_noise(noise, "fusion", number)(s, t)
            x = torch.add(torch.add(x, eps, alpha=-keep), fresh, alpha=spread)
        return step.by(self.inner, replace(state, x=x, prediction=None))
