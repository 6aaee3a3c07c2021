"""SyncDiffusion: windows of a canvas are pulled towards one of them before every step, so that they go together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from samplers.canvas.multidiffusion import Blend, MultiDiffusion
from samplers.denoiser import Condition, Context
from samplers.guidance.energy import check_numbers, predict_with_gradient
from samplers.guidance.two_branch import read_x0
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel, Path
from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step

# (x0 of windows (N, C, h, w), x0 of their anchors) -> (N,), differentiable in the first; rows must not look at one another
Distance = Callable[[Tensor, Tensor], Tensor]

PUBLISHED_FALLOFF = 0.95**50  # 0.95 per step over 50 steps


def style_distance(x: Tensor, anchor: Tensor) -> Tensor:
    """How far two images (N, C, h, w) are apart in the mean and spread of their channels, wherever things stand: (N,).

    Half the squared difference, times the number of pixels, so that its gradient at a pixel is about the difference itself.
    """
    gap = torch.zeros(())
    pixels = x.shape[-2] * x.shape[-1]
    for moment in (_mean, _spread):
        gap = gap + (moment(x) - moment(anchor)).square().sum(1)
    return 0.5 * pixels * gap


def perceptual_distance(
    features: Callable[[Tensor], list[Tensor]], decode: Callable[[Tensor], Tensor] | None = None
) -> Distance:
    """LPIPS with equal weights from any network: features(images) -> maps (N, C_l, h_l, w_l), after `decode` of x0.

    The sum over maps of the mean over their pixels of |f / |f| - g / |g||^2 (arXiv 1801.03924, equation 1 with w = 1).
    """

    def distance(x: Tensor, anchor: Tensor) -> Tensor:
        images = (x, anchor) if decode is None else (decode(x), decode(anchor))
        total = x.new_zeros(len(x))
        for one, other in zip(*(features(image) for image in images), strict=True):
            f, g = (v / (v.square().sum(1, keepdim=True) + 1e-10).sqrt() for v in (one, other))
            total = total + (f - g).square().sum(1).mean((1, 2))
        return total

    return distance


@dataclass(frozen=True)
class SyncDiffusion(SolverWrapper):
    """Any solver on a `MultiDiffusion` canvas: before the step, every window's x_i <- x_i - w grad d(D(x_i), D(x_anchor)).

    d is `distance` on clean images; through a decoder, with LPIPS, it is the published one. The gradient is by the
    variance-preserving x, on every path. w = weight * falloff^(1 - t / t_noise) of the path's clock, or a function of the
    level; weight 20 is 20 * 0.95^i at step i of 50, as published for LPIPS. The default is for `style_distance`, which a weight
    of 1 would remove at once where D is the identity. The anchor window, the middle one unless given, does not move. Windows
    differ in their overlaps then; the step goes from the weighted mean of the moved windows with that of their predictions,
    which is the mean of their own steps.

    With n windows a step costs n - 1 evaluations more than without, and their gradients; a solver's further stages cost what
    they always do. weight 0, a level outside `interval` (logsnr), and pure noise, of which D is no function, are the plain
    step. checkpoint: gradients without keeping activations, for one more evaluation each.

    Source: arXiv 2306.05178, Algorithm 1.
    """

    inner: Solver
    distance: Distance = style_distance
    weight: float | Callable[[NoiseLevel], float] = 0.1
    falloff: float = PUBLISHED_FALLOFF
    interval: Interval = EVERYWHERE
    anchor: int | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        check_interval(self.interval)
        check_numbers("SyncDiffusion", falloff=self.falloff, **({} if callable(self.weight) else {"weight": self.weight}))

    def advance(self, step: Step, state: State) -> State:
        denoiser, s = step.denoiser, step.s
        if not isinstance(denoiser, MultiDiffusion) or denoiser.group is not None:
            raise ValueError(
                "SyncDiffusion moves the windows of a canvas: its denoiser must be MultiDiffusion itself, guidance inside, "
                "nothing around it, and all windows in one process."
            )
        weight = self.weight_at(s, denoiser.path)
        if weight and s.alpha and len(denoiser.windows) > 1 and contains(self.interval, s):
            blend = self._moved(denoiser.at(s, len(state.x)), state.x, s, weight, step.condition, step.context)
            prediction = blend.prediction(state.x)
            state = replace(state, x=prediction.x, prediction=prediction)
        return step.by(self.inner, state)

    def weight_at(self, level: NoiseLevel, path: Path) -> float:
        if callable(self.weight):
            return float(self.weight(level))
        return self.weight * self.falloff ** (1 - level.t / path.t_noise)

    def _moved(
        self, canvas: MultiDiffusion, x: Tensor, level: NoiseLevel, weight: float, condition: Condition, context: Context
    ) -> Blend:
        """The windows' predictions after they moved, and where they are then."""
        blend, count = Blend(canvas, x, level, context), len(canvas.windows)
        anchor = count // 2 if self.anchor is None else self.anchor
        if not 0 <= anchor < count:
            raise ValueError(f"SyncDiffusion got anchor={anchor}, but the windows are 0 to {count - 1}.")
        rows = canvas.placed.crop(x, (anchor,))
        still = canvas.evaluate(rows, (anchor,), level, condition, context)
        blend.add((anchor,), still, rows)
        target = read_x0(still).detach()
        for chunk in canvas.chunks(len(x), [i for i in range(count) if i != anchor]):
            rows = canvas.placed.crop(x, chunk)
            # Algorithm 1 (arXiv 2306.05178): the move of a window
            rows = rows - weight * self._slope(canvas, rows, target, chunk, level, condition, context)
            blend.add(chunk, canvas.evaluate(rows, chunk, level, condition, context), rows)
        return blend

    def _slope(
        self,
        canvas: MultiDiffusion,
        rows: Tensor,
        target: Tensor,
        chunk: tuple[int, ...],
        level: NoiseLevel,
        condition: Condition,
        context: Context,
    ) -> Tensor:
        """The distance's gradient by the variance-preserving x, times what a move of that is in x."""
        inside = _Chunk(canvas, chunk)
        prediction = predict_with_gradient(inside, rows, level, condition, context, self.checkpoint)
        with torch.enable_grad():
            value = self.distance(read_x0(prediction), target.repeat(len(chunk), 1, 1, 1))
        if value.shape != (len(rows),) or not bool(value.isfinite().all()):
            raise ValueError(f"The distance gave {tuple(value.shape)} for {len(rows)} windows, or numbers that are not finite; "
                             f"return one number per window, of shape ({len(rows)},).")  # fmt: skip
        if not value.requires_grad:  # a cache repeats what it has, whatever x is
            return torch.zeros_like(rows)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(value.sum(), prediction.x)
        return math.hypot(level.alpha, level.sigma) ** 2 * slope


@dataclass(frozen=True)
class _Chunk:
    """Some windows of a canvas as a denoiser of their rows."""

    canvas: MultiDiffusion
    chunk: tuple[int, ...]

    @property
    def path(self) -> Path:
        return self.canvas.path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Any:
        return self.canvas.evaluate(x, self.chunk, level, condition, context)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _spread(x: Tensor) -> Tensor:
    return (x.var((2, 3), correction=0) + 1e-6).sqrt()
