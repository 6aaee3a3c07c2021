"""What lower orders on long steps are worth: error of every solver with memory, by ending, over paths, grids and step counts.

Deterministic solvers by their RMS error on a mixture of Gaussians, as a multiple of Euler's on the same levels; stochastic ones
by the standard deviation they give a Gaussian, whose exact value is known. `python -m tests.benchmarks.endings`
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor

from gen.cli.show import table
from samplers import (
    NoiseLevel,
    Path,
    RectifiedFlow,
    Solver,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
    solver_info,
)
from samplers.analytic import Gaussian, Mixture
from samplers.grids import Grid
from samplers.solvers.registry import SOLVERS

PATHS: dict[str, Path] = {
    "VE": VarianceExploding(),
    "SD": VariancePreserving.scaled_linear(),
    "DDPM": VariancePreserving.linear(),
    "zero SNR": VariancePreserving.scaled_linear(zero_terminal_snr=True),
    "flow": RectifiedFlow(),
}
GRIDS = (
    *("karras", "exponential", "uniform", "trailing", "leading", "linspace", "normal", "simple", "ddim_uniform", "sgm_uniform"),
    *("quadratic", "beta", "kl_optimal", "laplace", "vp", "iddpm", "linear_quadratic", "align_your_steps"),
)
WITH_MEMORY = [name for name, info in SOLVERS.items() if "ending" in info.options]
STD = 0.5


def pairs(steps: int, grids: tuple[str, ...] = GRIDS) -> Iterator[tuple[str, str, Grid]]:
    """(path, grid, levels) wherever the path has the grid."""
    for path in PATHS:
        for grid in grids:
            try:
                yield path, grid, get_grid(grid, PATHS[path], steps)
            except ValueError:
                continue


@lru_cache(maxsize=64)
def _solution(path: str, first: NoiseLevel) -> tuple[Tensor, Tensor]:
    """64 starts at a level, and where the probability-flow ODE of the mixture takes them, by Heun in 300 steps of log-SNR."""
    on = PATHS[path]
    start = first.sigma * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low = max(first.logsnr, -7.0) + 1e-3
    levels = [first, *(on.at_logsnr(low + i / 299 * (9 - low)) for i in range(300)), on(0.0)]
    return start, sample(Mixture.example(on), get_solver("heun"), start, levels)


def rms(solver: Solver, path: str, levels: Grid) -> float:
    """The error of a deterministic solver at clean data."""
    start, exact = _solution(path, levels[0])
    return float((sample(Mixture.example(PATHS[path]), solver, start, levels) - exact).square().mean().sqrt())


class Impulses:
    """A noise source for a batch in which row 0 is the start and row k gets the k-th draw alone."""

    def __init__(self, rows: int):
        self.rows, self.drawn = rows, 0

    def __call__(self, s: NoiseLevel, t: NoiseLevel) -> Tensor:
        self.drawn += 1
        return torch.zeros(self.rows, 1, dtype=torch.float64).index_fill_(0, torch.tensor(self.drawn), 1.0)


def spread(solver: Solver, path: str, levels: Grid) -> float:
    """Standard deviation of the samples of a centred Gaussian, over the true one, less 1: exact, as all of it is linear."""
    gaussian = Gaussian(PATHS[path], torch.zeros(1, dtype=torch.float64), torch.full((1,), STD, dtype=torch.float64))
    x = torch.zeros(2 * len(levels), 1, dtype=torch.float64)
    x[0] = gaussian.marginal(levels[0])[1].sqrt()
    return float(sample(gaussian, solver, x, levels, noise=Impulses(len(x))).square().sum().sqrt()) / STD - 1


def ratios(solver: Solver, steps: int, grids: tuple[str, ...] = GRIDS) -> list[float]:
    """The solver's error over Euler's, for every pair of a path and a grid."""
    euler = get_solver("euler")
    return [rms(solver, path, levels) / rms(euler, path, levels) for path, _, levels in pairs(steps, grids)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.endings", description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", default="6,10,20,40", help="numbers of steps, by commas")
    parser.add_argument("--solvers", default=",".join(WITH_MEMORY), help="by commas; all that have an ending if none are named")
    given = parser.parse_args()
    counts = [int(n) for n in given.steps.split(",")]
    names = [solver_info(name).name for name in given.solvers.split(",")]

    rows, noisy = [], []
    for name in names:
        endings: tuple[str, ...] = ("full", "bounded") if name == "dpm_fast" else ("full", "count", "bounded")
        for ending in endings if name in WITH_MEMORY else ("",):
            solver = partial(get_solver, name, **({"ending": ending} if ending else {}))
            cells = []
            for steps in counts:
                if SOLVERS[name].stochastic:
                    errors = sorted(abs(spread(solver(), p, levels)) for p, _, levels in pairs(steps))
                    cells.append(f"{errors[len(errors) // 2]:.2f}, {errors[-1]:.1f}")
                else:
                    found = ratios(solver(), steps)
                    mean = math.exp(math.fsum(map(math.log, found)) / len(found))
                    cells.append(f"{mean:.2f}, {max(found):.1f}, {sum(r > 1 for r in found)}")
            (noisy if SOLVERS[name].stochastic else rows).append((name, ending, *cells))
    total = len(list(pairs(counts[0])))
    print(f"Error over Euler's on {total} pairs of a path and a grid: geometric mean, largest, number of pairs above 1.")
    print(table(("solver", "ending", *(f"{n} steps" for n in counts)), rows), "\n")
    print("Error of the standard deviation of a Gaussian, as a part of it: median and largest.")
    print(table(("solver", "ending", *(f"{n} steps" for n in counts)), noisy))


if __name__ == "__main__":
    main()
