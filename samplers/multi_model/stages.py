"""A run in stages: another condition, denoiser and solver in each part of the schedule."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from samplers.denoiser import AdapterWeights, Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.path import Path as NoisePath
from samplers.prediction import Prediction
from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step

CLOSE = 1e-6  # log-SNR by which a level may miss the boundary that it is


@dataclass(frozen=True)
class LevelStage:
    """What acts in one part of a run. adapters: in the place of the run's."""

    denoiser: Denoiser
    solver: Solver
    condition: Condition
    adapters: AdapterWeights


@dataclass(frozen=True)
class LevelStages:
    """Which stage acts at a noise level: part i lies between boundary i - 1 and boundary i, in log-SNR, that one excluded.

    boundaries: rising; one less than there are parts.
    parts: part -> number of its stage, which may come back.
    make: number -> the stage, asked once for each, when it first acts.
    """

    boundaries: tuple[float, ...]
    parts: tuple[int, ...]
    make: Callable[[int], LevelStage]
    made: dict[int, LevelStage] = field(default_factory=dict, compare=False)

    def at(self, level: NoiseLevel) -> tuple[int, LevelStage]:
        """(number, stage). ValueError for levels per sample, as in training."""
        if isinstance(level.logsnr, Tensor):
            raise ValueError("Stages follow one noise level at a time, and got one for every sample; use them for sampling.")
        number = self.parts[bisect_right(self.boundaries, level.logsnr + CLOSE)]
        if number not in self.made:
            self.made[number] = self.make(number)
        return number, self.made[number]


@dataclass(frozen=True)
class StagedDenoiser:
    """The denoiser of the stage that a level lies in, under that stage's condition and adapters.

    Memories of the stages are kept apart. The run's own condition counts for nothing but what the solver adds (`extra`).
    """

    stages: LevelStages
    denoiser: Denoiser

    @property
    def path(self) -> NoisePath:
        return self.denoiser.path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        number, stage = self.stages.at(level)
        inside = replace(context.fork("stage", number), adapters=stage.adapters)
        own = inside.memo("stage condition", (condition,), lambda: _with_extra(stage.condition, condition))
        return stage.denoiser(x, level, own, inside)


@dataclass(frozen=True)
class StagedSolver(SolverWrapper):
    """The solver of the stage that a step begins in."""

    stages: LevelStages
    inner: Solver

    def advance(self, step: Step, state: State) -> State:
        return step.by(self.stages.at(step.s)[1].solver, state)


def _with_extra(own: Condition, run: Condition) -> Condition:
    """A stage's condition, with what the solver adds to the run's. What both have is the stage's."""
    return replace(own, extra={**run.extra, **own.extra}) if run.extra.keys() - own.extra.keys() else own
