"""Recurrence: every step several times, with noise added back in between."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.guidance.energy import check_count
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.noise import fork_noise
from samplers.noise_ratio import renoise_coefficients
from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step


@dataclass(frozen=True)
class Recurrent(SolverWrapper):
    """Makes each step from s to t of `inner` `times` times; before each repetition x_t is noised back to s,

        x_s = (alpha_s / alpha_t) x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) z.

    The time travel of FreeDoM and TFG, the self-recurrence of universal guidance: under a guided denoiser, what one pass
    missed the next one can mend. times * the evaluations of `inner`, where the step begins at a log-SNR within `interval`;
    times = 1 is `inner` itself. Every further pass draws its own noise and has no history: that of a multistep solver is of
    another trajectory then, and what the noise changed would be taken for a derivative.

    Raises ValueError without a noise source.

    Source: arXiv 2303.09833, Algorithm 2 (with jumps of one step); arXiv 2409.15761, Algorithm 1, N_recur.
    """

    inner: Solver
    times: int = 1
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_count("Recurrence", 1, times=self.times)
        check_interval(self.interval)

    def advance(self, step: Step, state: State) -> State:
        (low, high), noise = self.interval, step.noise
        passes = self.times if low <= step.s.logsnr <= high else 1
        after = step.by(self.inner, state)
        for k in range(1, passes):
            if noise is None:
                raise ValueError("Recurrence adds noise: pass noise=, for instance seeded_noise(seeds, x).")
            keep, spread = renoise_coefficients(step.t, step.s)  # Algorithm 2 (arXiv 2303.09833): time travel
            x = torch.add(keep * after.x, fork_noise(noise, "recurrence", k, "up")(step.s, step.t), alpha=spread)
            again = replace(state, x=x, history=())
            after = step.by(self.inner, again, noise=fork_noise(noise, "recurrence", k))
        return after
