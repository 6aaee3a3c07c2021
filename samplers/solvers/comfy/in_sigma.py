"""Sampling in ComfyUI's sigma: every path as x = x0 + sigma eps.

    rectified flow   x as it is, sigma = t, and eps is dx/dt:      x = x0 + t (eps - x0)
    other paths      x / alpha,  sigma = sigma / alpha, and eps is eps

In both dx / dsigma = (x - x0) / sigma, so that a rule on the variance-exploding path runs on flow models as it stands. It is
another method there than in log-SNR: equal steps in log sigma are not equal steps in log(sigma / alpha).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, Path, RectifiedFlow, Scalar, VarianceExploding
from samplers.prediction import Guided, Prediction
from samplers.sample import Evaluation, Solver, State
from samplers.solvers.churn import apply_churn, check_churn
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import SolverWrapper, Step

PURE_NOISE = NoiseLevel(math.inf, 0.0, 1.0)


@dataclass(frozen=True)
class SigmaPath:
    """ComfyUI's sigma of a path, as a variance-exploding path. `known` are levels whose way back needs no rounding."""

    path: Path
    known: dict[float, NoiseLevel] = field(default_factory=dict)

    @property
    def flow(self) -> bool:
        return isinstance(self.path, RectifiedFlow)

    @property
    def t_noise(self) -> float:
        return self.level(self.path(self.path.t_noise)).t

    def __call__(self, t: Scalar) -> NoiseLevel:
        return NoiseLevel(t, 1.0, t)

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        return self(math.exp(-value))

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return 0.0, 1.0

    def level(self, real: NoiseLevel) -> NoiseLevel:
        """A level of the path in sigma. Pure noise has a sigma on rectified flow only; elsewhere it stays pure noise."""
        if not self.flow and real.alpha == 0:
            return PURE_NOISE
        sigma = real.sigma if self.flow else noise_ratio(real)
        self.known[sigma] = real
        return NoiseLevel(sigma, 1.0, sigma)

    def real(self, level: NoiseLevel) -> NoiseLevel:
        """The level of the path, whose clock never goes beyond its noisiest."""
        if level.alpha == 0:
            return self.path(self.path.t_noise)
        if level.sigma in self.known:
            return self.known[level.sigma]
        if self.flow:
            return self.path(min(level.sigma, self.path.t_noise))
        found = self.path.at_logsnr(-math.log(level.sigma)) if level.sigma else self.path(0.0)
        ends = not isinstance(self.path, VarianceExploding) and found.t > self.path.t_noise
        return replace(found, t=self.path.t_noise) if ends else found

    def into(self, x: Tensor, real: NoiseLevel) -> Tensor:
        """x of a level in the coordinates of sigma; the tensor itself where they are its own."""
        return x if self.flow or real.alpha in (0, 1) else x / real.alpha

    def out(self, x: Tensor, real: NoiseLevel) -> Tensor:
        return x if self.flow or real.alpha in (0, 1) else real.alpha * x

    def read(self, prediction: Prediction, x: Tensor, level: NoiseLevel) -> Prediction:
        """A prediction of the path as one of sigma, with its branches; on a flow raw = a x0 + b eps has eps = x0 + dx/dt."""
        a, b = prediction.row
        row = (a + b, b) if self.flow else (a, b)
        mine = Prediction(x, level, prediction.raw, row, prediction.variance)
        if not isinstance(prediction, Guided):
            return mine
        cond, null = (p if p is None else self.read(p, x, level) for p in (prediction.cond, prediction.null))
        return Guided(x, level, mine.raw, row, mine.variance, cond, null)


@dataclass
class SigmaDenoiser:
    """The denoiser of a path in sigma, for one step; `first` is what it said first."""

    denoiser: Denoiser
    path: SigmaPath
    levels: tuple[NoiseLevel, ...]
    first: Prediction | None = None

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        real = self.path.real(level)
        there = State(self.path.out(x, real))
        prediction = evaluate(self.denoiser, there, real, condition, replace(context, levels=self.levels))
        if self.first is None:
            self.first = prediction
        return self.path.read(prediction, x, level)


class SigmaSolver(SolverWrapper):
    """A solver whose step is written in sigma: all of it is in `in_sigma`."""

    def init(self, x: Tensor) -> State:
        return State(x)

    def in_sigma(self, step: Step, state: State) -> State:
        """The state after a step; levels, x and predictions are those of `SigmaPath`, and so are the levels of the context."""
        raise NotImplementedError

    def advance(self, step: Step, state: State) -> State:
        path = SigmaPath(step.denoiser.path)
        s, t = path.level(step.s), path.level(step.t)
        levels = tuple(path.level(level) for level in step.context.levels)
        x, given = path.into(state.x, step.s), state.prediction
        handed = given is not None and given.x is state.x and given.level == step.s
        sigma_denoiser = SigmaDenoiser(step.denoiser, path, step.context.levels, given if handed else None)
        inside = replace(
            step,
            denoiser=sigma_denoiser,
            s=s,
            t=t,
            context=replace(step.context, levels=levels),
            noise=None if step.noise is None else _drawn(step.noise, path),
        )
        prediction_in_sigma = path.read(given, x, s) if handed and given is not None else None
        result = self.in_sigma(inside, replace(state, x=x, level=s, prediction=prediction_in_sigma))
        return replace(result, x=path.out(result.x, step.t), level=state.level, prediction=sigma_denoiser.first)


@dataclass(frozen=True)
class InSigma(SigmaSolver):
    """`inner` in sigma, with churn before each step (EDM, Algorithm 2): r is raised where s_tmin <= sigma <= s_tmax.

    denoise_last: the step to clean data is the predicted image, whatever the history says. s_noise scales churn's noise.
    """

    inner: Solver
    denoise_last: bool = False
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_churn(self)

    def in_sigma(self, step: Step, state: State) -> State:
        state, s = apply_churn(self, step.denoiser.path, state, step.s, step.context, step.noise)
        if self.denoise_last and step.t.sigma == 0:
            prediction = evaluate(step.denoiser, state, s, step.condition, step.context)
            return replace(state, x=prediction.x0, prediction=prediction)
        return step.by(self.inner, state, s=s)


def _drawn(noise: NoiseSource, path: SigmaPath) -> NoiseSource:
    return lambda s, t: noise(path.real(s), path.real(t))


def noisier(state: State, s: NoiseLevel, count: int) -> list[Evaluation]:
    """The evaluations before this step's that a rule may look back to, newest first: each noisier than the one after it."""
    evaluations: list[Evaluation] = []
    last = s.sigma
    for e in reversed(state.history):
        if e.step < state.step and e.level.alpha and e.level.sigma > last and len(evaluations) < count:
            evaluations.append(e)
            last = e.level.sigma
    return evaluations
