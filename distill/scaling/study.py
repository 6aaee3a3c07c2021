"""All that is fitted to a set of runs, and what it advises for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from distill.scaling import laws
from distill.scaling.budget import Split, best_split
from distill.scaling.laws import Array, PowerLaw, SaturatingLaw
from distill.scaling.runs import ScalingRun, rises

NEXT = 10  # times the computing of the largest run: the budget where none is given


@dataclass(frozen=True)
class FrontierFit:
    """A power law of one quantity. points: (its value, the number of merit) on the frontier. reason: why there is no law."""

    name: str
    points: Array
    law: PowerLaw | None
    reason: str = ""


@dataclass(frozen=True)
class Study:
    """runs, metric: what was read. power: laws of computing, size and data. law: of size and data together, of what is left to
    1 where the number rises; None with its `reason`. drawn: laws of the bootstrap. operations: of a sample, by size."""

    runs: Sequence[ScalingRun]
    metric: str
    power: Sequence[FrontierFit]
    operations: PowerLaw
    law: SaturatingLaw | None = None
    reason: str = ""
    drawn: Sequence[SaturatingLaw] = field(default_factory=list)

    def value(self, size: float, samples: float) -> tuple[float, float, float]:
        """What the law of size and data predicts, and its interval."""
        assert self.law is not None
        low, high = laws.percentiles([one(size, samples) for one in self.drawn])
        found = self.law(size, samples)
        return (1 - found, 1 - high, 1 - low) if rises(self.metric) else (found, low, high)

    def split(self, budget: float) -> tuple[Split, tuple[float, float]]:
        """The best split of a budget, and the interval of its size."""
        assert self.law is not None
        sizes = [best_split(one, self.operations, budget).size for one in self.drawn]
        return best_split(self.law, self.operations, budget), laws.percentiles(sizes)

    @property
    def largest(self) -> float:
        """The computing of the largest run."""
        return max(run.operations * run.samples[-1] for run in self.runs)

    @property
    def rate(self) -> float | None:
        """Operations per second: the middle one of the runs'."""
        rates = [run.operations * run.rate for run in self.runs if run.rate]
        return float(np.median(rates)) if rates else None


def study(runs: Sequence[ScalingRun], metric: str, resamples: int = 200, seed: int = 0) -> Study:
    """Fit every law to the points of these runs."""
    size, samples, cost, values = (
        np.array([number for run in runs for number in column(run)], dtype=np.float64)
        for column in (
            lambda run: [run.size] * len(run.values),
            lambda run: run.samples,
            lambda run: [run.operations * n for n in run.samples],
            lambda run: run.values,
        )
    )
    up = rises(metric)
    power = [_on_frontier(*one, values, up) for one in (("computing", cost), ("size", size), ("data", samples))]
    found = Study(runs, metric, power, _operations(runs))
    left = 1 - values if up else values
    whose = np.repeat(np.arange(len(runs)), [len(run.values) for run in runs])
    if left.min() <= 0:
        return replace(found, reason=f"{metric} reaches 1 or more, so that nothing is left to learn.")
    try:
        law = laws.fit_saturating(size, samples, left)
    except ValueError as error:
        return replace(found, reason=str(error))
    return replace(found, law=law, drawn=laws.bootstrap(law, size, samples, left, whose, resamples, seed))


def _on_frontier(name: str, x: Array, values: Array, up: bool) -> FrontierFit:
    kept = laws.frontier(x, values, up)
    points = np.stack([x[kept], values[kept]], 1)
    try:
        return FrontierFit(name, points, laws.fit_power(points[:, 0], points[:, 1]))
    except ValueError:
        return FrontierFit(name, points, None, f"{len(points)} points on the frontier; a law needs 3")


def _operations(runs: Sequence[ScalingRun]) -> PowerLaw:
    """k N^gamma through what a sample costs in each of the runs' networks; through two exactly."""
    pairs = sorted({(run.size, run.operations) for run in runs})
    u, v = np.log(np.array(pairs, dtype=np.float64)).T
    gamma = float(((u - u.mean()) * (v - v.mean())).sum() / ((u - u.mean()) ** 2).sum())
    return PowerLaw(float(np.exp(v.mean() - gamma * u.mean())), gamma)
