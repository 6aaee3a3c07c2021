"""TFG: guidance by an energy of the clean image; DPS, LGD, MPGD, FreeDoM and universal guidance are choices of its numbers."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.energy import (
    Energy,
    check_branch,
    check_count,
    check_numbers,
    detach_prediction,
    draw_shifts,
    gradients,
    limit_rms,
    predict_with_gradient,
    smoothed_energy,
    x0_with_gradient,
)
from samplers.guidance.recurrent import Recurrent
from samplers.guidance.two_branch import read_x0
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.sample import Solver
from samplers.wrappers import DenoiserWrapper

# the share of step s -> t in a strength, as the paper's alpha_t: the ratio of two steps' squared signal levels
SHARES: dict[str, Callable[[float], float]] = {
    "increase": lambda alpha: alpha,
    "decrease": lambda alpha: 1 - alpha,
    "constant": lambda alpha: 1.0,
}
MU_ON = ("x", "x0")
Shares = str | Callable[[NoiseLevel, NoiseLevel], float]


@dataclass(frozen=True)
class TFG(DenoiserWrapper):
    """From level s to t of a run, with D the denoiser, all in the variance-preserving x of the same log-SNR,

        log f~(z) = log mean over `samples` draws of f(z + gamma sigma_s delta)
        Delta_t = rho_s grad_x log f~(D(x));  Delta_0 = 0, then `iterations` times += mu_s grad log f~(D(x) + Delta_0)
        x_t = step(x_s; D(x_s)) + (alpha_t / alpha_s) Delta_t + alpha_t Delta_0.

    It is written as a field, so that every solver can run it: a move of x_t that a deterministic first-order step makes is
    one of x0 by the move / (alpha_t (1 - e^-h)), h the step's log-SNR. So Euler and DDIM compute the above exactly; solvers
    of higher order see a guided x0 throughout; a step with noise moves by its own weight of x0 instead.

    `levels` are those of the run, because TFG's strengths are per step: rho_s = rho * share, the shares "increase"
    (proportional to alpha_s^2 / alpha_t^2), "decrease" (to one minus that) or "constant", with mean 1 over the run; "step", by
    which x_t moves by rho grad_x itself, as in DPS; "score", by which eps moves by -rho sigma_s grad_x, as in universal
    guidance; or a function of (s, t) taken as it is. Between levels they are interpolated in log-SNR. `noise` is what delta is
    drawn from, for gamma > 0 (`seeded_noise`). Recurrence is `Recurrent`, around the solver.

    mu_on: "x", as above, or "x0": Delta_0 moves D(x) and not x_t, so that the step weighs it by 1 - e^-h. With that and
    rho_shares "score", mu_shares "constant" it is `Universal(rho, mu, iterations)`, for any number of iterations.

    Gradients run through the denoiser for rho only. checkpoint: without keeping its activations. limit: the largest root mean
    square of a guided image's move. Zero strength, or a log-SNR outside `interval`, is the denoiser itself. At pure noise, of
    which D is no function, rho adds nothing. Acts on x0: put it around classifier-free guidance. branch: grad_x then takes the
    conditional prediction's Jacobian for that of D ("cond"), or D's own ("guided"), which can point the other way.

    Source: arXiv 2409.15761, Algorithm 1 and section 4; the defaults are its code's.
    """

    denoiser: Denoiser
    energy: Energy
    levels: Sequence[NoiseLevel]
    rho: float = 1.0
    mu: float = 1.0
    gamma: float = 0.0
    samples: int = 4
    iterations: int = 1
    rho_shares: Shares = "increase"
    mu_shares: Shares = "increase"
    mu_on: str = "x"
    noise: NoiseSource | None = None
    interval: Interval = EVERYWHERE
    limit: float | None = None
    checkpoint: bool = False
    branch: str = "cond"

    def __post_init__(self) -> None:
        check_branch("TFG", self.branch)
        check_numbers("TFG", rho=self.rho, mu=self.mu, gamma=self.gamma)
        check_count("TFG", 1, samples=self.samples, iterations=self.iterations)
        check_interval(self.interval)
        if self.limit is not None:
            check_numbers("TFG", limit=self.limit)
        for name in ("rho_shares", "mu_shares"):
            value = getattr(self, name)
            if not callable(value) and value not in (*SHARES, *FIXED_SHARES):
                known = ", ".join((*SHARES, *FIXED_SHARES))
                raise ValueError(f"TFG got {name}={value!r}; choose one of {known}, or give a function.")
        if self.mu_on not in MU_ON:
            raise ValueError(f"TFG got mu_on={self.mu_on!r}; choose one of {', '.join(MU_ON)}.")
        if len(self.levels) < 2:
            raise ValueError(f"TFG needs the levels of the run, two at least, {len(self.levels)} given.")
        if self.gamma and self.noise is None:
            raise ValueError("TFG with gamma > 0 draws noise: pass noise=, for instance seeded_noise(seeds, x).")

    @cached_property
    def _table(self) -> tuple[list[float], list[tuple[float, float, float]]]:
        """(log-SNR, rising; (rho, mu, 1 - e^-h)) of the run's steps."""
        steps = list(pairwise(self.levels))
        shares = (_shares(rule, steps) for rule in (self.rho_shares, self.mu_shares))
        rhos, mus = ([bar * share for share in one] for bar, one in zip((self.rho, self.mu), shares, strict=True))
        reach = [-math.expm1(s.logsnr - t.logsnr) for s, t in steps]
        return [s.logsnr for s, _ in steps], list(zip(rhos, mus, reach, strict=True))

    def strengths(self, level: NoiseLevel) -> tuple[float, float, float]:
        """(rho, mu, 1 - e^-h) at a level: of the step that begins there, or in between."""
        places, values = self._table
        right = bisect_right(places, level.logsnr)
        if right == 0 or right == len(places) or places[right - 1] in (level.logsnr, -math.inf):
            return values[max(right - 1, 0)]
        before, after = places[right - 1], places[right]
        share = (level.logsnr - before) / (after - before)
        a, b, c = ((1 - share) * low + share * high for low, high in zip(values[right - 1], values[right], strict=True))
        return a, b, c

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        rho, mu, reach = self.strengths(level)
        total = math.hypot(level.alpha, level.sigma)
        if level.alpha == 0:
            rho = 0.0
        if (rho == 0 and mu == 0) or not contains(self.interval, level):
            return self.denoiser(x, level, condition, context)
        shifts = draw_shifts(self.noise, level, self.samples, self.gamma * level.sigma / total)
        if rho:
            prediction = predict_with_gradient(self.denoiser, x, level, condition, context, self.checkpoint)
            with torch.enable_grad():
                x0, sources = x0_with_gradient(prediction, self.branch), [prediction.x]
        else:
            with torch.no_grad():
                prediction = self.denoiser(x, level, condition, context)
            x0 = read_x0(prediction).detach().requires_grad_()
            sources = []
        with torch.enable_grad():
            value = smoothed_energy(self.energy, x0, condition, shifts)
        found = gradients(value, (*sources, *((x0,) if mu else ())), self.energy)
        x0, move = x0.detach(), torch.zeros_like(x0)
        if mu:
            move = mu * found[-1]  # Algorithm 1 (arXiv 2409.15761): mean guidance, Delta_0
            for _ in range(self.iterations - 1):
                move = move + mu * self._slope(x0 + move, condition, shifts)
        if self.mu_on == "x":
            move = move / reach
        if rho:  # grad by the variance-preserving x is `total` times that by x, and its alpha is alpha / total
            move = move + rho * total**2 / (level.alpha * reach) * found[0]  # its variance guidance, Delta_t
        return detach_prediction(prediction, x).with_x0(x0 + limit_rms(move, self.limit))

    def _slope(self, z: Tensor, condition: Condition, shifts: list[Tensor]) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return gradients(smoothed_energy(self.energy, z, condition, shifts), (z,), self.energy)[0]


def dps(denoiser: Denoiser, energy: Energy, levels: Sequence[NoiseLevel], scale: float = 1.0, **options) -> TFG:
    """DPS: after each step, x_t += scale grad_x log f(D(x_s)), the same at all levels.

    With the energy -|y - A(x0)|, the norm and not its square, scale is the published zeta.

    Source: arXiv 2209.14687, Algorithm 1, in the variance-preserving x.
    """
    return TFG(denoiser, energy, levels, **{"rho": scale, "mu": 0.0, "rho_shares": "step", **options})


def lgd(
    denoiser: Denoiser,
    energy: Energy,
    levels: Sequence[NoiseLevel],
    scale: float = 1.0,
    gamma: float = 1.0,
    samples: int = 4,
    **options,
) -> TFG:
    """LGD: DPS with f averaged over Gaussian draws about D(x), of spread gamma sigma (r_t of the paper for gamma 1).

    Source: Song et al. 2023, "Loss-guided diffusion models for plug-and-play controllable generation", equation 8.
    """
    return dps(denoiser, energy, levels, scale, **{"gamma": gamma, "samples": samples, **options})


def mpgd(denoiser: Denoiser, energy: Energy, levels: Sequence[NoiseLevel], scale: float = 1.0, **options) -> TFG:
    """MPGD: a gradient step on D(x) itself, the noise kept; nothing is differentiated through the denoiser.

    Source: arXiv 2311.16424, Algorithm 1 without the autoencoder's projection.
    """
    return TFG(denoiser, energy, levels, **{"rho": 0.0, "mu": scale, "mu_shares": "constant", **options})


def freedom(
    denoiser: Denoiser,
    solver: Solver,
    energy: Energy,
    levels: Sequence[NoiseLevel],
    scale: float = 1.0,
    times: int = 2,
    travel: Interval = EVERYWHERE,
    **options,
) -> tuple[TFG, Recurrent]:
    """FreeDoM: (denoiser, solver) of DPS with every step from a log-SNR within `travel` made `times` times.

    Source: arXiv 2303.09833, Algorithm 2 with jumps of one step.
    """
    return dps(denoiser, energy, levels, scale, **options), Recurrent(solver, times, travel)


def _signal(level: NoiseLevel) -> float:
    """alpha of the variance-preserving level of the same log-SNR."""
    return level.alpha / math.hypot(level.alpha, level.sigma)


def _unscaled(s: NoiseLevel, t: NoiseLevel) -> float:
    """The share that makes TFG's move of x_t by (alpha_t / alpha_s) Delta_t one by Delta_t."""
    return _signal(s) / _signal(t)


def _as_score(s: NoiseLevel, t: NoiseLevel) -> float:
    """The share that makes TFG's move of x_t one of eps by sigma_s grad_x."""
    return (1 - _signal(s) ** 2) * -math.expm1(s.logsnr - t.logsnr)


FIXED_SHARES: dict[str, Callable[[NoiseLevel, NoiseLevel], float]] = {"step": _unscaled, "score": _as_score}


def _shares(rule: Shares, steps: Sequence[tuple[NoiseLevel, NoiseLevel]]) -> list[float]:
    """Of every step; those of `SHARES` have mean 1."""
    if isinstance(rule, str):
        rule = FIXED_SHARES.get(rule, rule)
    if callable(rule):
        return [float(rule(s, t)) for s, t in steps]

    shares = [SHARES[rule]((_signal(s) / _signal(t)) ** 2) for s, t in steps]
    total = sum(shares)
    return [len(shares) * share / total if total else 1.0 for share in shares]
