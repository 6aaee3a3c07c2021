"""The Adams coefficients: polynomials are integrated exactly, whatever the grid, the order and the noise."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from samplers import Condition, Context, Multistep, NoiseLevel, Prediction, State, VariancePreserving
from samplers.sample import Evaluation
from samplers.solvers.multistep import adams_weights, kernel_moments

PATH = VariancePreserving.linear()
GAUSS, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(60)


class Power:
    """x0 = logsnr^k whatever x is."""

    path = PATH

    def __init__(self, power):
        self.power = power

    def __call__(self, x, level, condition, context):
        return Prediction(x, level, torch.full_like(x, level.logsnr**self.power), (1.0, 0.0))


def integral(s: NoiseLevel, t: NoiseLevel, tau2: float, power: int) -> float:
    """alpha_t times the integral of equation (1), by 60-point Gauss-Legendre quadrature."""
    a, b = s.logsnr, t.logsnr
    l = 0.5 * (a + b) + 0.5 * (b - a) * GAUSS
    kernel = (1 + tau2) * np.exp(-(1 + tau2) * (b - l))
    return t.alpha * 0.5 * (b - a) * float(GAUSS_WEIGHTS @ (kernel * l**power))


@pytest.mark.parametrize("h", [1e-8, 1e-3, 0.3, 0.999, 1.0, 1.001, 4.0, 30.0, -0.4, -3.0])
def test_moments_against_quadrature(h):
    w = 0.5 * (GAUSS + 1)
    for k, m in enumerate(kernel_moments(h, 5)):
        exact = 0.5 * float(GAUSS_WEIGHTS @ (h * np.exp(-h * (1 - w)) * w**k))
        assert math.isclose(m, exact, rel_tol=2e-13)


@pytest.mark.parametrize("tau2", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_step_integrates_polynomials(order, tau2):
    """Uneven history, steps short and long."""
    for scale in (0.01, 0.3, 2.0):
        *past, s, t = (PATH.at_logsnr(-0.5 + scale * v) for v in (-2.1, -1.4, -0.6, 0.0, 0.9))
        for power in range(order):
            history = tuple(
                Evaluation(i, v, torch.full((1, 1), v.logsnr**power, dtype=torch.float64)) for i, v in enumerate(past)
            )
            state = State(torch.zeros(1, 1, dtype=torch.float64), s, step=3, history=history)
            solver = Multistep(order, eta=tau2)
            after = solver.step(
                Power(power), state, s, t, Condition(), Context(), lambda s, t: torch.zeros(1, 1, dtype=torch.float64)
            )
            assert abs(after.x.item() - integral(s, t, tau2, power)) < 1e-12


@pytest.mark.parametrize("points", [2, 3, 4, 5])
@pytest.mark.parametrize("tau2", [0.0, 1.0])
def test_the_corrector_integrates_one_degree_more_per_point(points, tau2):
    solver = Multistep(min(points - 1, 4), eta=tau2, corrector_order=points)
    levels = [PATH.at_logsnr(v) for v in (-2.1, -1.4, -1.0, -0.5, 0.4)]
    s, t = levels[-2], levels[-1]
    for power in range(points):
        history = [Evaluation(i, v, torch.tensor(v.logsnr**power, dtype=torch.float64)) for i, v in enumerate(levels)]
        x0 = {e.step: e.x0.item() for e in history}
        predicted = sum(w * x0[step] for step, w in solver.weights(history[:-1], s, t).items())
        corrected = predicted + sum(w * x0[step] for step, w in solver.correction(history).items())
        assert abs(corrected - integral(s, t, tau2, power)) < 1e-12
        if power == points - 1:
            assert abs(predicted - corrected) > 1e-4  # the predictor alone does not reach this degree


def test_tiny_steps_keep_their_digits():
    """Second difference of nearly equal nodes: the weights still sum to the zeroth moment and the first moment."""
    h, nodes = 1e-9, (0.0, -1.0, -2.5, -4.0)
    b = adams_weights(h, nodes)
    assert math.isclose(sum(b), -math.expm1(-h), rel_tol=1e-13)
    assert math.isclose(sum(w * n for w, n in zip(b, nodes, strict=True)), h / 2, rel_tol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ancestral_noise_is_ddim(eta):
    """DDIM (arXiv 2010.02502), equations 12 and 16, with alpha^2 for its alpha."""
    s, t = PATH.at_logsnr(-1.0), PATH.at_logsnr(0.5)
    x, x0 = 0.8, -0.4
    std = eta * (t.sigma / s.sigma) * math.sqrt(1 - s.alpha**2 / t.alpha**2)
    eps = (x - s.alpha * x0) / s.sigma
    expected = t.alpha * x0 + math.sqrt(t.sigma**2 - std**2) * eps
    solver = Multistep(1, eta=eta, noise="ancestral")
    keep, spread, stretched = solver.transition(s, t)
    assert math.isclose(spread, std, rel_tol=1e-13, abs_tol=1e-15)
    assert math.isclose(keep * x + t.alpha * adams_weights(stretched, (0.0,))[0] * x0, expected, rel_tol=1e-13)


def test_same_grid_is_not_computed_twice():
    solver, levels = Multistep(3), [PATH.at_logsnr(v / 7) for v in range(-9, 9)]

    def run():
        state = solver.init(torch.zeros(1, 1, dtype=torch.float64))
        for step, (s, t) in enumerate(pairwise(levels)):
            state = State(solver.step(Power(1), state, s, t, Condition(), Context()).x, t, step + 1, history=state.history)

    run()
    misses = adams_weights.cache_info().misses
    run()
    assert adams_weights.cache_info().misses == misses
