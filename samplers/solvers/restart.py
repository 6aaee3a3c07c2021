"""Restart: go back up a part of the noise levels and come down again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from samplers.grids.common import ratio_bounds
from samplers.noise import fork_noise
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, Path
from samplers.sample import Solver, State
from samplers.solvers.heun import Heun
from samplers.wrappers import SolverWrapper, Step


@dataclass(frozen=True)
class Restart(SolverWrapper):
    """When a step of `inner` reaches sigma_min, add noise up to sigma_max and come back in `steps` steps, `times` over.

    Both are in sigma / alpha; the noise erases part of the errors made so far, and steps of an ODE solver make few new ones.
    It happens at the first level at or below sigma_min, to which each return also leads, on a Karras grid (rho = 7); where that
    is clean data, the grid ends at sigma_min, within the path, and the last step leads from there to the data. A run
    takes times * steps inner steps more than that of `inner`, within the one step that reaches sigma_min; times = 0 is
    `inner` itself. Several intervals are one Restart as the `inner` of another.

    Raises ValueError without a noise source, and for a sigma_max above the path's noisiest level.

    Source: arXiv 2306.14878, Algorithm 1. The defaults are the interval that AUTOMATIC1111 uses.
    """

    inner: Solver = Heun()  # noqa: RUF009 - frozen
    sigma_min: float = 0.1
    sigma_max: float = 2.0
    steps: int = 9
    times: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"Restart got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}; "
                "give finite values with 0 <= sigma_min < sigma_max."
            )
        for name, least in (("steps", 1), ("times", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"Restart got {name}={value!r}; give a whole number of at least {least}.")

    def advance(self, step: Step, state: State) -> State:
        t, noise = step.t, step.noise
        returns = self.times if noise_ratio(t) <= self.sigma_min < noise_ratio(step.s) else 0
        if returns and noise is None:
            raise ValueError("Restart adds noise: pass noise=, for instance seeded_noise(seeds, x).")
        now, levels = state.step, self.levels(step.denoiser.path, t) if returns else ()
        state = step.by(self.inner, state)
        for k in range(returns):
            assert noise is not None
            source, upward, top = fork_noise(noise, "restart", k), fork_noise(noise, "restart", k, "up"), levels[0]
            spread = top.alpha * math.sqrt(noise_ratio(top) ** 2 - noise_ratio(t) ** 2)
            # Algorithm 1 (arXiv 2306.14878): up to sigma_max
            x = torch.add(top.alpha / t.alpha * state.x, upward(t, top), alpha=spread)
            # numbered so that the last one is this step: what it leaves in the history is what the next step goes on from
            run = replace(self.inner.init(x), level=top, step=now + 1 - self.steps)
            for a, b in pairwise(levels):
                run = step.by(self.inner, run, s=a, t=b, noise=source)
                run = replace(run, level=b, step=run.step + 1)
            state = run
        return replace(state, step=now)

    def levels(self, path: Path, t: NoiseLevel) -> tuple[NoiseLevel, ...]:
        """The `steps` + 1 levels of each return, from sigma_max to t."""
        noisiest = noise_ratio(path(path.t_noise))
        if self.sigma_max > noisiest:
            raise ValueError(
                f"Restart goes up to sigma_max={self.sigma_max}, but this path ends at {noisiest:.6g}: choose less."
            )
        intervals, last = (
            (self.steps, noise_ratio(t)) if t.sigma else (max(self.steps - 1, 1), max(ratio_bounds(path)[0], self.sigma_min))
        )
        a, b = self.sigma_max ** (1 / 7), min(last, self.sigma_max) ** (1 / 7)
        ratios = [(a + i / intervals * (b - a)) ** 7 for i in range(self.steps)]
        return (*(path.at_logsnr(-math.log(r)) for r in ratios), t)
