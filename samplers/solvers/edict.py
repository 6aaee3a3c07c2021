"""EDICT: two coupled sequences whose steps can be undone exactly, whatever the network says.

With a = alpha_t / alpha_s and b = sigma_t - a sigma_s a step of DDIM from s to t is x_t = a x_s + b eps(x_s). Two copies x
and y of the image take it in turns, each with the other's eps, and are mixed so that they stay together:

    x' = a x + b eps(y)        y' = a y + b eps(x')                                                            (14)
    x_t = p x' + (1 - p) y'    y_t = p y' + (1 - p) x_t                                                        (15)

all eps at the level s. Every line can be solved for what it changed (16, 17), with the same two evaluations. x' is at the level
t already: on a variance-preserving path the network takes it for x at s because both have about unit variance, and on any other
path it is scaled so that this is the same.

What holds the copies together is p: a step multiplies their difference by p^2, while the eps of the two drive it apart the more
the longer the step is. The paper's p = 0.93 is for 50 steps, and makes noise of an image in 10 or 20; here it is for a step of
`mix_length` in log-SNR and longer ones mix more, which is one and the same damping of the whole run in any number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel, check_falling
from samplers.sample import State
from samplers.solvers.evaluate import evaluate


@dataclass(frozen=True)
class EDICT:
    """DDIM on two coupled sequences: first order, two evaluations per step, undone by `invert_edict`.

    mix: the paper's p for a step of mix_length in log-SNR, in (0, 1]; lower holds the two closer together, and amplifies
    rounding by 1 / p^2 on the way back. mix_length 0: the same p for every step, as published.
    alternate: x and y change places at every other step, as the authors do. twin: what the second sequence starts from, the
    first one's start where it is None; `invert_edict` gives it. The result of a run is the first sequence. Where something else
    has moved x (a callback, recurrence), the second sequence moves along. From pure noise, which is no image's own, both take
    Euler's step.

    Source: arXiv 2211.12446, equations 14 to 17.
    """

    mix: float = 0.93
    alternate: bool = True
    twin: Tensor | None = None
    mix_length: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.mix <= 1:
            raise ValueError(f"EDICT got mix={self.mix}; give a number above 0, up to 1.")
        if not 0 <= self.mix_length < math.inf:
            raise ValueError(f"EDICT got mix_length={self.mix_length}; give a length in log-SNR, or 0 for one p at all steps.")

    def mixing(self, s: NoiseLevel, t: NoiseLevel) -> float:
        """The p of a step; an endless one, to clean data, has that of mix_length."""
        h = t.logsnr - s.logsnr
        return self.mix if not self.mix_length or math.isinf(h) else self.mix ** (h / self.mix_length)

    def init(self, x: Tensor) -> State:
        if self.twin is not None and self.twin.shape != x.shape:
            raise ValueError(f"EDICT got a twin {tuple(self.twin.shape)} for x {tuple(x.shape)}; give one of the same shape.")
        return State(x, carry=(x, x if self.twin is None else self.twin))

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
        check_falling(s, t)
        before, y = state.carry
        if state.x is not before:
            y = y + (state.x - before)
        if s.alpha == 0:
            prediction = evaluate(denoiser, state, s, condition, context)
            x = torch.add(t.sigma / s.sigma * state.x, prediction.x0, alpha=t.alpha)
            return replace(state, x=x, prediction=prediction, carry=(x, x))
        swapped = self.alternate and state.step % 2 == 1
        x, y = (y, state.x) if swapped else (state.x, y)
        a, b, scale = _ddim(s, t)
        prediction = evaluate(denoiser, replace(state, x=y), s, condition, context)
        x = torch.add(a * x, prediction.eps, alpha=b)  # (14)
        y = torch.add(a * y, denoiser(scale * x, s, condition, context).eps, alpha=b)  # (14)
        mix = self.mixing(s, t)
        x = torch.lerp(y, x, mix)  # (15)
        y = torch.lerp(x, y, mix)  # (15)
        x, y = (y, x) if swapped else (x, y)
        return replace(state, x=x, prediction=prediction, carry=(x, y))


def _ddim(s: NoiseLevel, t: NoiseLevel) -> tuple[float, float, float]:
    """(a, b, what x' is scaled by for the network)."""
    a = t.alpha / s.alpha
    return a, t.sigma - a * s.sigma, math.hypot(s.alpha, s.sigma) / math.hypot(t.alpha, t.sigma)


@torch.no_grad()
def invert_edict(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    mix: float = 0.93,
    alternate: bool = True,
    twin: Tensor | None = None,
    mix_length: float = 0.1,
    context: Context | None = None,
) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) at the last level of a sampling grid -> (x, twin) at its first level.

    sample(denoiser, EDICT(mix, alternate, twin, mix_length), x, levels) is the image again, to rounding: in float64, or where
    the product of all p^-2 leaves enough digits. Under another condition it is an edit. twin: the second sequence's end, x
    itself if None.
    Raises ValueError for a grid that starts with pure noise.
    """
    solver = EDICT(mix, alternate, twin, mix_length)
    _, y = solver.init(x).carry
    if levels[0].alpha == 0:
        raise ValueError("Pure noise has no image to come back to: start the grid at a level with alpha > 0.")
    context, condition = replace(context or Context(), steps=len(levels) - 1), condition or Condition()
    for step in reversed(range(len(levels) - 1)):
        s, t, at = levels[step], levels[step + 1], context.at(step)
        (a, b, scale), swapped = _ddim(s, t), alternate and step % 2 == 1
        x, y = (y, x) if swapped else (x, y)
        p = solver.mixing(s, t)
        y = (y - (1 - p) * x) / p  # (16)
        x = (x - (1 - p) * y) / p
        y = (y - b * denoiser(scale * x, s, condition, at).eps) / a  # (17)
        x = (x - b * denoiser(y, s, condition, at).eps) / a
        x, y = (y, x) if swapped else (x, y)
    return x, y
