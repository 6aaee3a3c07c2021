"""Adaptive step size: DPM-Solver-12 and 23 under a PID controller."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.grids import uniform_logsnr
from samplers.noise import NoiseSource, need_noise
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, check_falling
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep
from samplers.solvers.singlestep import Singlestep, advance, step_weights
from samplers.wrappers import PlainSolver, Step

SMALLEST = 1e-5  # in log-SNR: what a step leaves over that is shorter than this goes with it, or in one first-order step


@dataclass(frozen=True)
class Pace:
    """The controller between two trial steps: the next size in log-SNR, inverse errors of the last accepted two (newest
    first, none before the first trial), the last accepted low-order result in y = x / alpha, and the trials so far."""

    h: float
    errors: tuple[float, ...] = ()
    low: Tensor | None = None
    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class Paces:
    """A pace for every image of a batch."""

    rows: tuple[Pace, ...]


@dataclass(frozen=True)
class StepControl:
    """How large adaptive steps are.

    order: of the better of the two methods, 2 or 3.
    rtol, atol: the error that is allowed of a step.
    h_init: first trial in log-SNR.
    pcoeff, icoeff, dcoeff: PID gains.
    accept_safety: the least factor of the size at which a trial is accepted.
    eta, s_noise: ancestral noise, as in `Singlestep`.
    together: the images of a batch share their steps.
    """

    order: int = 3
    rtol: float = 0.05
    atol: float = 0.0078
    h_init: float = 0.05
    pcoeff: float = 0.0
    icoeff: float = 1.0
    dcoeff: float = 0.0
    accept_safety: float = 0.81
    eta: float = 0.0
    s_noise: float = 1.0
    together: bool = True

    def __post_init__(self) -> None:
        if self.order not in (2, 3) or isinstance(self.order, bool):
            raise ValueError(f"Adaptive got order={self.order!r}; choose 2 or 3.")
        for name in ("rtol", "atol"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Adaptive got {name}={getattr(self, name)}; give a finite tolerance of at least 0.")
        if not self.rtol + self.atol > 0:
            raise ValueError("Adaptive got rtol=0 and atol=0, which no step can meet; give at least one of them above 0.")
        if not 0 < self.h_init < math.inf:
            raise ValueError(f"Adaptive got h_init={self.h_init}; give a finite first step in log-SNR above 0.")
        for name in ("pcoeff", "icoeff", "dcoeff"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"Adaptive got {name}={getattr(self, name)}; give a finite gain.")
        if not 1 - math.pi / 4 < self.accept_safety < 1:
            raise ValueError(f"Adaptive got accept_safety={self.accept_safety}; give a number between 0.22 and 1.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"Adaptive got eta={self.eta}; give 0 <= eta <= 1.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"Adaptive got s_noise={self.s_noise}; give a finite factor of at least 0.")


@dataclass(frozen=True)
class Adaptive(StepControl, PlainSolver):
    """From level to level in steps whose error it estimates, by the methods of order `order` - 1 and `order` on the same nodes.

    It chooses its own levels between the two that a step is given, so a grid of two is enough; the size carries over from one
    to the next. A trial is accepted where RMS((low - high) / max(atol, rtol |y|)), y = x / alpha in VE units, asks for a next
    step of at least accept_safety times the size. Each trial waits once for the device, to read its error, and costs `order`
    evaluations, after a rejection one less.

    together: the images of a batch share their steps and one error, the mean over all of them, as in k-diffusion; an image then
    depends on those beside it. Otherwise each takes steps of its own. Their levels differ, so the whole batch is evaluated for
    each of them in turn: give batches of one image where that is to cost no more.

    Its ancestral noise never needs a level cleaner than the last.
    Pure noise and clean data lie infinitely far away: a step to or from them begins or ends with one first-order step between
    them and the path's own bounds (those of `uniform_logsnr`). `state.carry` counts accepted and rejected trials.

    Source: arXiv 2206.00927, Algorithm 3 (appendix C) with the controller of k-diffusion's sample_dpm_adaptive, a PID one on
    the inverse error: h is multiplied by 1 + atan(f - 1), f = e_n^b1 e_{n-1}^b2 e_{n-2}^b3.
    """

    @cached_property
    def _method(self) -> Singlestep:
        return Singlestep(self.order, "eps", self.eta, "ancestral", s_noise=self.s_noise)

    @cached_property
    def _first_order(self) -> Multistep:
        return Multistep(1, eta=self.eta, noise="ancestral", s_noise=self.s_noise)

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        check_falling(s, t)
        if self.eta:
            need_noise(noise, f"eta={self.eta}")
        if self.together or len(state.x) == 1:
            return self._between(denoiser, state, s, t, condition, context, noise, None)
        paces = state.carry.rows if isinstance(state.carry, Paces) else (None,) * len(state.x)
        ends = [
            self._between(
                denoiser,
                replace(state, carry=pace),
                s,
                t,
                condition,
                replace(context, view=(context.view, "row", row)),
                noise,
                row,
            )
            for row, pace in enumerate(paces)
        ]
        x = torch.stack([end.x[row] for row, end in enumerate(ends)])
        return replace(ends[0], x=x, carry=Paces(tuple(end.carry for end in ends)))

    def _between(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None,
        row: int | None,
    ) -> State:
        """From s to t in steps that suit one row, or all where it is None."""
        start, end = s, t
        if math.isinf(t.logsnr - s.logsnr):
            noisiest, cleanest, _ = uniform_logsnr(denoiser.path, 2)
            start = s if s.alpha else min(noisiest, t, key=lambda level: level.logsnr)
            end = t if t.sigma else max(cleanest, start, key=lambda level: level.logsnr)
            if end.logsnr - start.logsnr < SMALLEST:  # the path's bound is the grid's own, but for rounding
                start, end = (start, start) if end is not t else (end, end)

        handed_over, prediction = state.prediction, None
        for a, b in ((s, start), (start, end), (end, t)):
            if a.logsnr == b.logsnr:
                continue
            if math.isinf(b.logsnr - a.logsnr) or b.logsnr - a.logsnr < SMALLEST:
                state = self._first_order.step(denoiser, state, a, b, condition, context, noise)
            else:
                state = self._controlled(denoiser, state, a, b, condition, context, noise, row)
            prediction = prediction or state.prediction
            state = replace(state, history=(), prediction=None)
        return replace(state, prediction=prediction or handed_over)

    def _controlled(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None,
        row: int | None,
    ) -> State:
        """From one finite level to another."""
        x, here, method = state.x, s, self._method
        pace = state.carry if isinstance(state.carry, Pace) else Pace(self.h_init)
        low = x / s.alpha if pace.low is None else pace.low
        first = start = evaluate(denoiser, state, s, condition, context)
        while here.logsnr < t.logsnr:
            ahead = here.logsnr + pace.h
            there = t if ahead > t.logsnr - SMALLEST else denoiser.path.at_logsnr(ahead)
            keep, spread, span = self._transition(here, there, t)
            readings, _, _ = method.stages(denoiser, x, first, here, span, condition, context)
            lower, higher = (
                advance(x, here, there, keep, "eps", readings[:p], step_weights(span, method.nodes[:p], "eps", "published"))
                for p in (self.order - 1, self.order)
            )
            tried = lower / there.alpha
            scale = (self.rtol * torch.maximum(tried.abs(), low.abs())).clamp(min=self.atol)
            off = (tried - higher / there.alpha) / scale  # Algorithm 3 (arXiv 2206.00927): the error of a trial
            error = (off if row is None else off[row]).square().mean().sqrt().item()
            pace, accepted = self._control(pace, error, here)
            if accepted:
                if spread and noise is not None:
                    higher = torch.add(higher, noise(here, there), alpha=spread)
                x, low, here = higher, tried, there
                pace = replace(pace, low=low)
                if here.logsnr < t.logsnr:
                    first = denoiser(x, here, condition, context)
        return replace(state, x=x, prediction=start, carry=pace)

    def _transition(self, s: NoiseLevel, t: NoiseLevel, end: NoiseLevel) -> tuple[float, float, float]:
        """As `Multistep.transition`, but the lower level that noise brings up to t does not lie beyond the end."""
        keep, spread, span = self._first_order.transition(s, t)
        longest = end.logsnr - s.logsnr
        if span <= longest:
            return keep, spread, span
        r_t, r_end = noise_ratio(t), noise_ratio(end)
        return t.alpha * r_end / s.sigma, self.s_noise * t.alpha * math.sqrt(r_t**2 - r_end**2), longest

    def _control(self, pace: Pace, error: float, level: NoiseLevel) -> tuple[Pace, bool]:
        """The pace after a trial with this error, and whether the trial is accepted."""
        if not math.isfinite(error):
            raise ValueError(f"The error of a step from logsnr {level.logsnr:.4g} is {error}: the predictions are not finite.")
        inverse = 1 / (error + 1e-8)
        newest, oldest = pace.errors or (inverse, inverse)
        unit = 1.5 if self.eta else self.order
        f = (
            inverse ** ((self.pcoeff + self.icoeff + self.dcoeff) / unit)
            * newest ** (-(self.pcoeff + 2 * self.dcoeff) / unit)
            * oldest ** (self.dcoeff / unit)
        )
        factor = 1 + math.atan(f - 1)  # the PID controller of k-diffusion
        accepted = factor >= self.accept_safety
        return (
            replace(
                pace,
                h=pace.h * factor,
                errors=(inverse, newest) if accepted else (newest, oldest),
                accepted=pace.accepted + accepted,
                rejected=pace.rejected + (not accepted),
            ),
            accepted,
        )
