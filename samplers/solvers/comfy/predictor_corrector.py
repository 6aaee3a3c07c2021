"""SA-Solver and UniPC with orders that fall towards the end of the run, as ComfyUI runs them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.noise import need_noise
from samplers.path import NoiseLevel, Path
from samplers.sample import Evaluation, State
from samplers.solvers.comfy.in_sigma import SigmaSolver
from samplers.solvers.comfy.start import at_percent
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import adams_weights
from samplers.wrappers import SolverWrapper, Step


def earlier_evaluations(state: State, s: NoiseLevel) -> list[Evaluation]:
    """The evaluations before this step's, newest first, as far as each is noisier than the next; none after a jump back."""
    evaluations: list[Evaluation] = []
    last = s.logsnr
    for e in reversed(state.history):
        if e.step < state.step:
            if not -math.inf < e.level.logsnr < last:
                break
            evaluations.append(e)
            last = e.level.logsnr
    return evaluations


def x0_weights(points: list[NoiseLevel], s: NoiseLevel, t: NoiseLevel, tau2: float, rule: str) -> tuple[float, ...]:
    """Factors of x0 at `points` in equation (1) of `samplers.solvers.multistep` from s to t, alpha_t among them."""
    h = t.logsnr - s.logsnr
    nodes = tuple(0.0 if p is s else 1.0 if p is t else (p.logsnr - s.logsnr) / h for p in points)
    return tuple(t.alpha * w for w in adams_weights((1 + tau2) * h, nodes, rule))


def add_weighted(x: Tensor, values: list[Tensor], factors: tuple[float, ...], sign: float = 1.0) -> Tensor:
    for value, factor in zip(values, factors, strict=True):
        x = torch.add(x, value, alpha=sign * factor)
    return x


def correct(
    x: Tensor, new: Evaluation, before: list[Evaluation], predictor: int, corrector: int, tau2: float, rule: str
) -> Tensor:
    """x after the corrector of `corrector` points in place of the predictor of `predictor` points, on the last step."""
    s, t = before[0].level, new.level
    old = before[:predictor]
    x = add_weighted(x, [e.x0 for e in old], x0_weights([e.level for e in old], s, t, tau2, rule), -1.0)
    used = [new, *before[: corrector - 1]]
    return add_weighted(x, [e.x0 for e in used], x0_weights([e.level for e in used], s, t, tau2, rule))


@dataclass(frozen=True)
class StochasticAdams(SolverWrapper):
    """SA-Solver in log-SNR: predictor of `order` points, corrector of `corrector_order`, noise of strength `tau` between the
    levels at fractions tau_start and tau_end of training time, none elsewhere.

    On a run to clean data both orders fall so that the last noisy level is reached by a first-order step. pece: the corrected
    x is evaluated again, two evaluations a step, and the last x too is corrected. shift: the model's resolution shift, by which
    a flow's fractions are meant, and the start just below pure noise (see `StartBelow`).

    Source: arXiv 2309.05019, Algorithm 1, equations 14 and 17; the interval of noise from its section 6.
    """

    tau: float = 1.0
    tau_start: float = 0.2
    tau_end: float = 0.8
    order: int = 3
    corrector_order: int = 4
    pece: bool = False
    shift: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("order", "corrector_order"):
            if getattr(self, name) not in (1, 2, 3, 4) or isinstance(getattr(self, name), bool):
                raise ValueError(f"StochasticAdams got {name}={getattr(self, name)!r}; choose 1, 2, 3 or 4 points.")
        for name in ("tau", "s_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"StochasticAdams got {name}={getattr(self, name)}; give a finite number of at least 0.")
        if not 0 <= self.tau_start <= self.tau_end <= 1:
            raise ValueError(
                f"StochasticAdams got tau_start={self.tau_start} and tau_end={self.tau_end}: fractions of training time, "
                "0 <= tau_start <= tau_end <= 1."
            )
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift must be a finite number above 0, got {self.shift}.")

    def init(self, x: Tensor) -> State:
        return State(x)

    def _tau2(self, path: Path, t: NoiseLevel) -> float:
        high, low = (at_percent(path, p, self.shift) for p in (self.tau_start, self.tau_end))
        return self.tau**2 if high.logsnr <= t.logsnr <= low.logsnr else 0.0

    def advance(self, step: Step, state: State) -> State:
        path, s, t = step.denoiser.path, step.s, step.t
        left = _left(step, state)  # steps after this one, if the run ends in clean data
        if s.alpha == 0:
            s = at_percent(path, 1e-4, self.shift)
        ask = (step.condition, step.context)
        prediction = evaluate(step.denoiser, state, s, *ask)
        before, x = earlier_evaluations(state, s), state.x
        fresh = not any(e.step == state.step for e in state.history)  # a repeated step does not start from a predictor's output
        points = len(before) + 1
        if before and before[0].step == state.step - 1 and fresh and (t.sigma > 0 or self.pece):
            corrector, predictor = min(self.corrector_order, points), min(self.order, points - 1)
            if left is not None:
                corrector, predictor = min(corrector, left + 1), min(predictor, left + 1)
            new = Evaluation(state.step, s, prediction.x0)
            x = correct(x, new, before, predictor, corrector, self._tau2(path, s), "exact")
            if self.pece:
                prediction = step.denoiser(x, s, *ask)
        history = state.remember(s, prediction.x0, max(self.order, self.corrector_order))
        if t.sigma == 0:
            return replace(state, x=prediction.x0, prediction=prediction, history=history)
        used = min(self.order, points) if left is None else min(self.order, points, max(left, 1))
        tau2, h = self._tau2(path, t), t.logsnr - s.logsnr
        known = [Evaluation(state.step, s, prediction.x0), *before[: used - 1]]
        x = t.sigma / s.sigma * math.exp(-tau2 * h) * x  # equation 14 (arXiv 2309.05019)
        x = add_weighted(x, [e.x0 for e in known], x0_weights([e.level for e in known], s, t, tau2, "exact"))
        if tau2 and self.s_noise:
            x = torch.add(
                x,
                need_noise(step.noise, f"tau={self.tau}")(s, t),
                alpha=self.s_noise * t.sigma * math.sqrt(-math.expm1(-2 * tau2 * h)),
            )
        return replace(state, x=x, prediction=prediction, history=history)


@dataclass(frozen=True)
class UniPC(SigmaSolver):
    """UniPC of `order` in log sigma with the rule bh1 or bh2.

    sigma_end: where the step to clean data stops, if not there. ComfyUI's stops at 0.001, so that a thousandth of the noise
    stays in the picture, and in what an inpainting keeps: sigma_end=0.001 is that to rounding.

    The step to level k of N has order min(order, N + 1 - k), at most k, and its corrector one point more; the last step has no
    corrector. The order is at most N - 1.

    Source: arXiv 2302.04867, Algorithms 5 and 6.
    """

    rule: str = "bh1"
    order: int = 3
    sigma_end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_end < math.inf:
            raise ValueError(f"UniPC got sigma_end={self.sigma_end}; give a finite number of at least 0.")
        if self.rule not in ("bh1", "bh2"):
            raise ValueError(f"Unknown rule {self.rule!r}: choose bh1 or bh2.")
        if self.order not in (1, 2, 3) or isinstance(self.order, bool):
            raise ValueError(f"UniPC got order={self.order!r}; choose 1, 2 or 3.")

    def in_sigma(self, step: Step, state: State) -> State:
        s, t = step.s, step.t
        after = max(step.context.steps - state.step - 1, 0) if step.context.steps else None
        prediction = evaluate(step.denoiser, state, s, step.condition, step.context)
        history = state.remember(s, prediction.x0, 4)
        if s.alpha == 0:
            return replace(state, x=prediction.x0 + t.sigma * prediction.eps, prediction=prediction, history=history)
        end = t.sigma or min(self.sigma_end, s.sigma / 2)
        if end == 0:
            return replace(state, x=prediction.x0, prediction=prediction, history=history)
        t = NoiseLevel(end, 1.0, end)
        before, x = earlier_evaluations(state, s), state.x
        most = self.order if not step.context.steps else max(min(self.order, step.context.steps - 1), 1)

        def at(points: int, later: int | None) -> int:
            """Order of the step through at most `points` with `later` steps after it."""
            return min(most, points) if later is None else min(most, points, later + 1)

        new = Evaluation(state.step, s, prediction.x0)
        if before and before[0].step == state.step - 1 and not any(e.step == state.step for e in state.history):
            order = at(len(before), None if after is None else after + 1)
            x = correct(x, new, before, order, order + 1, 0.0, self.rule)
        known = [new, *before][: at(len(before) + 1, after)]
        x = t.sigma / s.sigma * x
        x = add_weighted(x, [e.x0 for e in known], x0_weights([e.level for e in known], s, t, 0.0, self.rule))
        return replace(state, x=x, prediction=prediction, history=history)


def _left(step: Step, state: State) -> int | None:
    """How many steps of a run to clean data come after this one; None for another run, or one that is not known."""
    levels = step.context.levels
    if levels and levels[-1].sigma:
        return None
    return max(step.context.steps - 1 - state.step, 0) if step.context.steps else None
