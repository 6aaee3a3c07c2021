"""Bases of denoisers around another denoiser, of solvers, and of solvers around another solver."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel, Path
from samplers.sample import Solver, State


@dataclass(frozen=True)
class Step:
    """One step of a run from level s to t: everything but the state."""

    denoiser: Denoiser
    s: NoiseLevel
    t: NoiseLevel
    condition: Condition
    context: Context
    noise: NoiseSource | None = None

    def by(self, solver: Solver, state: State, **changes: Any) -> State:
        """The state after this step of a solver; changes: another denoiser, other levels or noise."""
        step = replace(self, **changes) if changes else self
        return solver.step(step.denoiser, state, step.s, step.t, step.condition, step.context, step.noise)


class DenoiserWrapper:
    """A denoiser around another, on the same path: a frozen dataclass with a field `denoiser` and a `__call__`."""

    denoiser: Denoiser

    @property
    def path(self) -> Path:
        return self.denoiser.path


class PlainSolver:
    """A solver that begins with nothing but x: all of it is in `advance`."""

    def init(self, x: Tensor) -> State:
        return State(x)

    def step(
        self,
        denoiser: Any,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> State:
        return self.advance(Step(denoiser, s, t, condition, context, noise), state)

    def advance(self, step: Step, state: State) -> State:
        """The state after a step."""
        raise NotImplementedError


class SolverWrapper(PlainSolver):
    """A solver that does something about the steps of `inner`."""

    inner: Solver

    def init(self, x: Tensor) -> State:
        return self.inner.init(x)
