"""Recurrence: every step several times, with noise added back in between."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.branches import EVERYWHERE, Interval, check_interval
from samplers.guidance.energy import check_count
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import Solver, State
from samplers.solvers.ratio import rise
from samplers.solvers.restart import renewed


@dataclass(frozen=True)
class Recurrent:
    """Makes each step from s to t of `inner` `times` times; before each repetition x_t is noised back to s,

        x_s = (alpha_s / alpha_t) x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) z.

    The time travel of FreeDoM and TFG, the self-recurrence of universal guidance: under a guided denoiser, what one pass
    missed the next one can mend. times * the evaluations of `inner`, where the step begins at a log-SNR within `interval`;
    times = 1 is `inner` itself. Every pass begins with the history that the first had, and draws its own noise.

    Raises ValueError without a noise source.

    Source: arXiv 2303.09833, Algorithm 2 (with jumps of one step); arXiv 2409.15761, Algorithm 1, N_recur.
    """

    inner: Solver
    times: int = 1
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_count("Recurrence", 1, times=self.times)
        check_interval(self.interval)

    def init(self, x: Tensor) -> State:
        return self.inner.init(x)

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
        low, high = self.interval
        passes = self.times if low <= s.logsnr <= high else 1
        after = self.inner.step(denoiser, state, s, t, condition, context, noise)
        for k in range(1, passes):
            if noise is None:
                raise ValueError("Recurrence adds noise: pass noise=, for instance seeded_noise(seeds, x).")
            keep, spread = rise(t, s)
            x = torch.add(keep * after.x, renewed(noise, "recurrence", k, "up")(s, t), alpha=spread)
            source = renewed(noise, "recurrence", k)
            after = self.inner.step(denoiser, replace(state, x=x), s, t, condition, context, source)
        return after
