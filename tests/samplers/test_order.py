"""Orders of convergence on a Gaussian mixture, against a Runge-Kutta reference."""

import math
from dataclasses import replace

import pytest
import torch

from samplers import Heun, Multistep, VarianceExploding, sample
from tests.oracles import Mixture, reference_ode

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
