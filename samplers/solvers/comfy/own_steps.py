"""Samplers of ComfyUI that take steps of their own between the first and the last noisy level of a schedule.

They ask of a schedule how many steps it has and where its noisy levels end, and stop there: where it goes on to clean data, the
least of its noise stays in the image. Inside a run the image is at levels of theirs, not of the schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

from torch import Tensor

from samplers.path import NoiseLevel
from samplers.sample import State
from samplers.solvers.adaptive import Adaptive, StepControl
from samplers.solvers.blockwise import Blockwise, block_orders
from samplers.solvers.comfy.in_sigma import SigmaSolver
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import Step


@dataclass(frozen=True)
class OwnRun:
    """first: the step of the run that begins at a finite level. start, end: sigmas from which and to which it goes."""

    first: int
    start: float
    end: float

    @classmethod
    def of(cls, levels: tuple[NoiseLevel, ...]) -> OwnRun:
        """From the levels of a run in sigma; of one step to clean data there is no way between, and end is start."""
        first = next(i for i, level in enumerate(levels) if level.alpha)
        last = levels[-1] if levels[-1].sigma else levels[max(len(levels) - 2, first)]
        return cls(first, levels[first].sigma, last.sigma)


def euler(step: Step, state: State) -> State:
    """One Euler step of the schedule, from pure noise too."""
    prediction = evaluate(step.denoiser, state, step.s, step.condition, step.context)
    return replace(state, x=prediction.x0 + step.t.sigma * prediction.eps, prediction=prediction)


def even_blocks(start: float, end: float, steps: int) -> tuple[float, ...]:
    """steps + 1 sigmas: blocks of three that are equally long in log sigma, and the levels evenly inside each of them."""
    lengths = [length for position, length in block_orders(steps, 3) if position == 1]
    span = (math.log(end) - math.log(start)) / len(lengths)
    logs = [math.log(start) + span * (b + k / length) for b, length in enumerate(lengths) for k in range(length)]
    return (start, *(math.exp(v) for v in logs[1:]), end)


@dataclass(frozen=True)
class _Kept:
    """The carry of the solver inside, the image that it belongs to, and the levels of the run."""

    inner: object
    x: Tensor
    levels: tuple[NoiseLevel, ...]


def informed(step: Step, kept: object) -> Step:
    """A step that knows the levels of its run: from its context or what is kept; a step without them is a run of its own."""
    if step.context.levels:
        return step
    if isinstance(kept, _Kept):
        return replace(step, context=replace(step.context, levels=kept.levels))
    return replace(step, context=replace(step.context, levels=(step.s, step.t), step=0, steps=1))


@dataclass(frozen=True)
class OwnFast(SigmaSolver):
    """DPM-Solver-fast in blocks that are equally long in log sigma: of three evaluations, at the end of two and one.

    A run of N steps takes N evaluations, one a step. A single step to clean data, and one from a noise that has no sigma, is an
    Euler step. As in `Blockwise`, an image that was changed since the last step begins a block of its own.

    Source: arXiv 2206.00927, section 3.3, with the blocks of k-diffusion.
    """

    @cached_property
    def _blocks(self) -> Blockwise:
        return Blockwise(order=3, predict="eps", rule="published")

    def advance(self, step: Step, state: State) -> State:
        kept = state.carry
        known = kept.inner if isinstance(kept, _Kept) and kept.x is state.x else None
        step = informed(step, kept)
        result = super().advance(step, replace(state, carry=known))
        return replace(result, carry=_Kept(result.carry, result.x, step.context.levels))

    def in_sigma(self, step: Step, state: State) -> State:
        levels = step.context.levels
        run = OwnRun.of(levels)
        if step.s.alpha == 0 or run.start == run.end:
            return euler(step, state)
        at, count = step.context.step - run.first, len(levels) - 1 - run.first
        s, t = (NoiseLevel(v, 1.0, v) for v in even_blocks(run.start, run.end, count)[at : at + 2])
        block = None if state.carry is None else replace(state.carry, x=state.x)
        context = replace(step.context, step=at, steps=count)
        return step.by(self._blocks, replace(state, carry=block), s=s, t=t, context=context)


@dataclass(frozen=True)
class OwnAdaptive(StepControl, SigmaSolver):
    """DPM-Solver-12 or 23 under a PID controller (`Adaptive`) through the whole run, in its first step of finite length.

    The other steps leave the image as it is. A single step to clean data, and one from a noise that has no sigma, is an Euler
    step. together: the images of a batch share their steps, as ComfyUI's do; an image then depends on those beside it.
    """

    together: bool = False

    @cached_property
    def _adaptive(self) -> Adaptive:
        return Adaptive(**{option.name: getattr(self, option.name) for option in fields(StepControl)})

    def advance(self, step: Step, state: State) -> State:
        result = super().advance(informed(step, None), state)
        return result if result.prediction is not None else replace(result, prediction=state.prediction)

    def in_sigma(self, step: Step, state: State) -> State:
        if state.carry is not None:  # the run is done
            return state
        run = OwnRun.of(step.context.levels)
        if step.s.alpha == 0 or run.start == run.end:
            return euler(step, state)
        return step.by(self._adaptive, state, t=NoiseLevel(run.end, 1.0, run.end))
