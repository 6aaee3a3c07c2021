"""Running a solver along a grid of noise levels.

`trajectory` yields a `State` after each step, so previews, early exit and anytime sampling are plain loops over it;
`sample` runs to the end. Nothing is kept anywhere else: a state handed back to `step` continues from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
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
    """Advances a state from level s to level t. Pure: state in, state out.

    `init` makes the state of a run from its first x; `step` returns `replace(state, x=..., prediction=...)` with x at t and the
    prediction made at s. `trajectory` fills in level, step and evaluations. What a solver must handle:

    s.alpha = 0     pure noise, of which the log-SNR is -infinity and sigma / alpha infinite. The step to t is
                    x_t = alpha_t x0 + sigma_t eps; an eps prediction says nothing there, and `evaluate` refuses it.
    t.sigma = 0     clean data, log-SNR +infinity: x_t = x0. A denoiser is never asked there.
    repeated steps  recurrence and search take a step from s to t again, from another x and the state that they kept. So nothing
                    is stored on the solver; memory lies in `state.history`, under the number of the step that made it
                    (`State.remember` replaces an entry of the same step), or in `state.carry`.
    state.carry     whatever the solver keeps for itself, handed on as it is; None after `init` unless that sets it, and None
                    where a run goes on from a state of another solver.
    moved x         a callback or wrapper may change state.x between steps: what was computed from the former x (a handed-over
                    prediction, a sum in `carry`) counts only where its x is the very tensor `state.x`.
    noise           z for the step is noise(s, t), a function of the two levels; a stochastic solver without a source raises
                    ValueError.
    """

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
    grad: bool = False,
) -> Iterator[State]:
    """Yield the state after each of the len(levels) - 1 steps.

    x: (B, C, H, W) at levels[0], which is unit noise times its sigma for a new image.
    levels: at least two, each of less noise (higher log-SNR) than the one before.
    condition: what the image should be; nothing by default.
    noise: what stochastic solvers draw from, `seeded_noise(seeds, x)` for instance.
    context: the run's; a new one by default.
    grad: whether steps can be differentiated. By default no graph is built, as under torch.no_grad(); guidance by an energy
    takes its own gradients either way.

    What a denoiser knows of the clean image (`Inpaint`) stands in it as it is, whatever the solver has made of it.
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
        with nullcontext() if grad else torch.no_grad():
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
    grad: bool = False,
) -> Tensor:
    """x at the last level. Arguments as in `trajectory`; `on_step` is called with the state after every step."""
    state = State(x)
    for state in trajectory(denoiser, solver, x, levels, condition, noise=noise, context=context, grad=grad):
        if on_step is not None:
            on_step(state)
    return state.x
