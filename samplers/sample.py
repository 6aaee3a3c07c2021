"""Running a solver along a grid of noise levels.

`trajectory` yields a `State` after each step, so previews, early exit and anytime sampling are plain loops over it;
`sample` runs to the end. Nothing is kept anywhere else: a state handed back to `step` continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.prediction import Prediction

KNOWN = "known part"  # in `Context.store`: a function that puts what a denoiser knows of the image into a clean x


@dataclass(frozen=True)
class Evaluation:
    """One remembered prediction, keyed by the step that made it; its eps only where the solver works on eps."""

    step: int
    level: NoiseLevel
    x0: Tensor
    eps: Tensor | None = None


@dataclass(frozen=True)
class State:
    """A run between two steps: x (B, C, H, W) at `level`, `step` steps done, the last prediction, the solver's history."""

    x: Tensor
    level: NoiseLevel | None = None
    step: int = 0
    prediction: Prediction | None = None
    history: tuple[Evaluation, ...] = ()
    evaluations: float = 0.0  # network evaluations so far, per image
    carry: Any = None  # what else the solver keeps from step to step, for itself alone

    def remember(self, level: NoiseLevel, x0: Tensor, keep: int, eps: Tensor | None = None) -> tuple[Evaluation, ...]:
        """History with this step's evaluation last, oldest first, `keep` at most; repeating a step replaces its entry."""
        past = tuple(e for e in self.history if e.step != self.step)
        return (*past, Evaluation(self.step, level, x0, eps))[-keep:] if keep else ()


class Solver(Protocol):
    """Advances a state from level s to level t. Pure: state in, state out."""

    def init(self, x: Tensor) -> State: ...

    def step(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> State: ...


def trajectory(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    noise: NoiseSource | None = None,
    context: Context | None = None,
) -> Iterator[State]:
    """Yield the state after each of the len(levels) - 1 steps.

    x (B, C, H, W) is at levels[0]: unit noise scaled by its sigma. `noise` is needed by stochastic solvers only. Levels must
    fall in noise (rise in log-SNR) from one to the next for every solver here; at least two are needed. What a denoiser knows
    of the clean image (`Inpaint`) stands in it as it is, whatever the solver has made of it.
    """
    if len(levels) < 2:
        raise ValueError(f"A run needs at least two noise levels, {len(levels)} given: ask a grid for one step or more.")
    context = replace(context or Context(), steps=len(levels) - 1, levels=tuple(levels))
    condition = condition or Condition()
    before = context.evaluations
    context.store.pop(KNOWN, None)
    _check_range(x, levels)
    state = replace(solver.init(x), level=levels[0])
    for step, (s, t) in enumerate(pairwise(levels)):
        state = solver.step(denoiser, state, s, t, condition, context.at(step), noise)
        done = (context.evaluations - before) / x.shape[0]
        state = replace(state, level=t, step=step + 1, evaluations=done)
        if t.sigma == 0 and KNOWN in context.store:
            state = replace(state, x=context.store[KNOWN](state.x))
        if x.dtype == torch.float16 and step + 2 == len(levels) and not bool(state.x.isfinite().all()):
            raise ValueError(
                "The run left the range of float16 (65504 at most), or the network gave what is no number: use bfloat16 or "
                "float32."
            )
        yield state


def _check_range(x: Tensor, levels: Sequence[NoiseLevel]) -> None:
    """ValueError where noise of the first level, up to six standard deviations, does not fit float16."""
    largest = torch.finfo(torch.float16).max
    if x.dtype == torch.float16 and 6 * levels[0].sigma > largest:
        raise ValueError(
            f"float16 holds numbers up to {largest:g}, and noise of sigma {levels[0].sigma:g} goes beyond: use bfloat16 or "
            "float32, or a grid that starts at less noise."
        )


def sample(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    noise: NoiseSource | None = None,
    context: Context | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Tensor:
    """x at the last level. Arguments as in `trajectory`; `on_step` sees every state."""
    state = State(x)
    for state in trajectory(denoiser, solver, x, levels, condition, noise=noise, context=context):
        if on_step is not None:
            on_step(state)
    return state.x
