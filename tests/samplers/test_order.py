"""Orders of convergence on a Gaussian mixture, against a Runge-Kutta reference."""

import math
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

from samplers import ClassifierFree, Heun, Multistep, VarianceExploding, get_solver, sample
from samplers.analytic import Mixture, reference_ode
from samplers.solvers.registry import SOLVERS

PATH = VarianceExploding(0.01, 100.0)
MIXTURE = replace(Mixture.example(PATH), stds=Mixture.example(PATH).stds + 0.5)  # smooth enough to be asymptotic by N = 64
FIRST, LAST = -math.log(10), -math.log(0.15)


@pytest.fixture(scope="module")
def start():
    return 10 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def reference(start):
    return reference_ode(MIXTURE, start, PATH.at_logsnr(FIRST), PATH.at_logsnr(LAST), 800)


def levels(steps: int):
    """Uniform in logsnr, the first step cut into doubling parts from h^2 / 8 up.

    A multistep method starts at first order; a first step that small leaves no mark on its order.
    """
    h = (LAST - FIRST) / steps
    cuts = []
    part = h
    while part > h * h / 8:
        part /= 2
        cuts.insert(0, FIRST + part)
    return [PATH.at_logsnr(v) for v in (FIRST, *cuts, *(FIRST + h * i for i in range(1, steps + 1)))]


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Multistep(1), 1),
        (Heun(), 2),
        (Multistep(2, rule="midpoint"), 2),
        (Multistep(2), 2),
        (Multistep(3), 3),
        (Multistep(3, rule="published"), 2),
        (Multistep(4), 4),
        (Multistep(1, rule="bh2", corrector_order=2), 2),
        (Multistep(2, rule="bh1", corrector_order=3), 3),
        (Multistep(2, rule="bh2", corrector_order=3), 3),
        (Multistep(3, rule="bh2", corrector_order=4), 4),
    ],
    ids=str,
)
def test_slope(solver, order, start, reference):
    coarse, fine = ((sample(MIXTURE, solver, start, levels(n)) - reference).square().mean().sqrt() for n in (64, 128))
    assert abs(math.log2(coarse / fine) - order) < 0.15


# what the registry declares

PATTERN = (1.0, 2.2, 0.8, 1.7, 1.0, 0.6, 2.5, 1.3)


def uneven(steps: int):
    """Steps in log-SNR of a repeating pattern, up to four times as long as the one before."""
    ends = list(accumulate(PATTERN[i % len(PATTERN)] for i in range(steps)))
    return [PATH.at_logsnr(FIRST + (LAST - FIRST) * end / ends[-1]) for end in (0.0, *ends)]


def even(steps: int):
    return [PATH.at_logsnr(FIRST + (LAST - FIRST) * i / steps) for i in range(steps + 1)]


def without_noise(name: str) -> dict | None:
    """Options with which a solver is one of the ODE; None for one that has none."""
    info = SOLVERS[name]
    if info.adaptive or name.startswith("comfy:") or name in ("ddpm", "consistency", "lcm", "tcd", "restart", "flow_map"):
        return None
    if "scale" in info.options:
        return {"scale": "ode"}
    return {"eta": 0.0} if "eta" in info.options else None if info.stochastic else {}


@pytest.mark.parametrize("name", [name for name in SOLVERS if without_noise(name) is not None])
def test_declared_orders_are_observed(name, start, reference):
    """From the solver's own start, whatever its order, on even steps and on uneven ones; and no order more is."""
    denoiser = ClassifierFree(MIXTURE, 1.0, keep_both=True) if SOLVERS[name].both_branches else MIXTURE
    slopes = []
    for grid in (even, uneven):
        errors = [
            (sample(denoiser, get_solver(name, **without_noise(name)), start, grid(steps)) - reference).square().mean().sqrt()
            for steps in (60, 120)
        ]
        slopes.append(math.log2(errors[0] / errors[1]))
    assert SOLVERS[name].order - 0.15 < min(slopes) < SOLVERS[name].order + 1
