"""A toy test bed in two dimensions, where the right answer is known: python docs/examples/toy.py toy.png

The data are a mixture of Gaussians, so that the best denoiser has a closed form (`samplers.analytic.Mixture`). No network is
needed, and the error of a solver is its distance to the exact solution of the probability-flow ODE. It needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from samplers import get_grid, get_solver, sample
from samplers.analytic import Mixture, reference_ode
from samplers.path import VarianceExploding

SOLVERS = {"euler": 1, "heun": 2, "dpmpp_2m": 1, "unipc": 1}  # name -> evaluations a step
EVALUATIONS = (4, 8, 16, 32, 64)


def run(
    count: int = 400, solvers: Mapping[str, int] = SOLVERS, evaluations: Sequence[int] = EVALUATIONS
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """(data (N, 2), samples (N, 2) by the last solver at 16 evaluations, solver -> its errors by evaluations)."""
    path = VarianceExploding(0.02, 20.0)
    mixture = Mixture.example(path)
    start, end = path(20.0), path(0.02)
    x = mixture.sample(count, start, torch.Generator().manual_seed(0))
    exact = reference_ode(mixture, x, start, end, steps=1000)
    samples, errors = exact, {}
    for name, cost in solvers.items():
        errors[name] = []
        for number in evaluations:
            levels = get_grid("karras", path, number // cost, sigma_min=0.02, sigma_max=20.0)[:-1]  # without clean data
            made = sample(mixture, get_solver(name), x, levels)
            errors[name].append((made - exact).norm(dim=1).mean().item())
            samples = made if number == 16 else samples
    return mixture.sample(count, end, torch.Generator().manual_seed(1)), samples, errors


def plot(data: Tensor, samples: Tensor, errors: Mapping[str, Sequence[float]], output: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.scatter(*data.T, s=6, label="data")
    left.scatter(*samples.T, s=6, label=f"{[*errors][-1]}, 16 evaluations")
    left.set_aspect("equal")
    left.legend(loc="upper right")
    left.set_xlim(-2, 5)
    for name, values in errors.items():
        right.loglog(EVALUATIONS, values, marker="o", label=name)
    right.set_xticks(EVALUATIONS, [str(number) for number in EVALUATIONS])
    right.minorticks_off()
    right.set_xlabel("evaluations of the denoiser")
    right.set_ylabel("mean distance to the exact solution")
    right.legend()
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the PNG to write")
    plot(*run(), parser.parse_args().output)
