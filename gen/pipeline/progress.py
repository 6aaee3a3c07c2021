"""Progress counted in evaluations of the network, for runs whose steps take very many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


class EvaluationBar:
    """A progress bar in evaluations of the network, as they are made. Their total is known after the last step; before that it
    is what the steps so far took, for all of them."""

    def __init__(self, bar: Any, steps: int):
        self.bar, self.steps, self.done, self.count = bar, steps, 0, 0
        bar.total, bar.unit = None, "evaluation"

    def update(self, steps: int) -> None:
        self.done += steps
        self.bar.total = round(self.count * max(self.steps / self.done, 1))
        self.bar.update(0)

    def evaluated(self, rows: int) -> None:
        self.count += rows
        self.bar.update(rows)


@dataclass(frozen=True)
class CountEvaluations(DenoiserWrapper):
    """A network whose evaluations a bar shows."""

    denoiser: Denoiser
    bar: EvaluationBar

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        before = context.evaluations
        prediction = self.denoiser(x, level, condition, context)
        self.bar.evaluated(context.evaluations - before)
        return prediction


@dataclass(frozen=True)
class StepsOnly:
    """A bar of steps for a run that counts evaluations."""

    bar: Any

    def update(self, steps: int) -> None:
        self.bar.update(steps)

    def evaluated(self, rows: int) -> None: ...
