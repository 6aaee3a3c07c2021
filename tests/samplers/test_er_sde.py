"""ER-SDE solvers: their integrals, marginals, orders, and the published form."""

import math

import numpy as np
import pytest
import torch

from samplers import (
    Condition,
    Context,
    Multistep,
    Prediction,
    RectifiedFlow,
    State,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
)
from samplers.analytic import Gaussian, Mixture
from samplers.sample import Evaluation
from samplers.solvers.er_sde import ERSDE, er_moments
from tests.samplers.references import Replay

VE = VarianceExploding(0.01, 100.0)
PHI = {"er": lambda r: r * (np.exp(r**0.3) + 10), "sde": lambda r: r**2, "ode": lambda r: r}


@pytest.mark.parametrize("scale", PHI)
@pytest.mark.parametrize(("r_s", "r_t"), [(80.0, 30.0), (1.0, 0.999), (3.0, 0.01), (90.0, 0.01)])
def test_moments(scale, r_s, r_t):
    """Against 200-point Gauss-Legendre quadrature of w^k d(phi_t / phi) in log r, the derivative by complex step."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    u = math.log(r_s) + 0.5 * math.log(r_t / r_s) * (1 + nodes)
    derivative = np.imag(1 / PHI[scale](np.exp(u + 1e-30j))) / 1e-30 * PHI[scale](r_t)
    for k, m in enumerate(er_moments(scale, r_s, r_t, 3)):
        w = (np.exp(u) - r_s) / (r_t - r_s)
        exact = 0.5 * math.log(r_t / r_s) * float(weights @ (w**k * derivative))
        assert math.isclose(m, exact, rel_tol=1e-11)


@pytest.mark.parametrize("scale", PHI)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_step_integrates_polynomials(order, scale):
    """x0 = r^k, k < order, on an uneven history."""
    *past, s, t = (VE(v) for v in (4.0, 2.5, 1.6, 0.9))
    nodes, weights = np.polynomial.legendre.leggauss(100)
    r = 1.6 + 0.5 * (0.9 - 1.6) * (1 + nodes)
    derivative = np.imag(1 / PHI[scale](r + 1e-30j)) / 1e-30 * PHI[scale](0.9)
    for power in range(order):
        value = [torch.full((1, 1), level.sigma**power, dtype=torch.float64) for level in (*past, s)]
        x = torch.ones(1, 1, dtype=torch.float64)
        history = tuple(Evaluation(i, level, v) for i, (level, v) in enumerate(zip(past, value, strict=False)))
        state = State(x, s, 2, Prediction(x, s, value[-1], (1.0, 0.0)), history)
        after = ERSDE(order, scale, s_noise=0.0).step(None, state, s, t, Condition(), Context()).x
        integral = 0.5 * (0.9 - 1.6) * float(weights @ (derivative * r**power))
        assert abs(after.item() - PHI[scale](0.9) / PHI[scale](1.6) - integral) < 1e-12


def published(model, x, sigmas, noise, order, points):
    """The paper's algorithm in sigma with its integrals as Riemann sums of `points` terms, as it was published."""
    phi, old, old_d = PHI["er"], None, None
    for i in range(len(sigmas) - 1):
        s, t = sigmas[i : i + 2]
        x0 = model(x, s)
        keep = phi(t) / phi(s)
        y = keep * x + (1 - keep) * x0
        if order > 1 and i > 0:
            dt, grid = t - s, s + (t - s) * np.arange(points) / points
            d = (x0 - old) / (s - sigmas[i - 1])
            y = y + (dt + np.sum(-dt / points / phi(grid)) * phi(t)) * d
            if order > 2 and i > 1:
                u = (d - old_d) / ((s - sigmas[i - 2]) / 2)
                y = y + (dt**2 / 2 + np.sum((grid - s) * -dt / points / phi(grid)) * phi(t)) * u
            old_d = d
        old = x0
        x = y + math.sqrt(t**2 - (s * keep) ** 2) * noise()
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_published_algorithm(order):
    """rule="published" is the paper's with converged integrals; its 200-point sums are off by what they leave out."""
    start = 20 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mixture, sigmas = Mixture.example(VE), [20 * 0.7**i for i in range(12)]
    ours = sample(mixture, ERSDE(order, rule="published"), start, [VE(v) for v in sigmas], noise=Replay(start))

    def gap(points):
        def model(x, sigma):
            return mixture(x, VE(sigma), Condition(), Context()).x0

        return (published(model, start, sigmas, Replay(start), order, points) - ours).abs().max()

    if order == 1:
        assert gap(1) < 1e-12
    else:
        assert gap(200) > 5e-5
        assert gap(200) / gap(20000) == pytest.approx(100, rel=0.05)  # first order in the number of points


SMOOTH = Gaussian(VE, torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([1.5, 2.5], dtype=torch.float64))


def graded(steps, first, last):
    h = (last - first) / steps
    cuts, part = [], h
    while part > h * h / 8:
        part /= 2
        cuts.insert(0, first + part)
    return [VE.at_logsnr(v) for v in (first, *cuts, *(first + h * i for i in range(1, steps + 1)))]


@pytest.mark.parametrize(
    ("solver", "order"),
    [(ERSDE(1, "ode"), 1), (ERSDE(2, "ode"), 2), (ERSDE(3, "ode"), 3), (ERSDE(3, "ode", rule="published"), 2)],
    ids=str,
)
def test_order_of_the_deterministic_limit(solver, order):
    start = 10 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = -math.log(10), -math.log(0.15)
    exact = SMOOTH.ode(start, VE.at_logsnr(ends[0]), VE.at_logsnr(ends[1]))
    coarse, fine = ((sample(SMOOTH, solver, start, graded(n, *ends)) - exact).square().mean().sqrt() for n in (64, 128))
    assert abs(math.log2(coarse / fine) - order) < 0.15


@pytest.mark.parametrize(("order", "expected"), [(1, 1), (2, 2), (3, 3)])
def test_order_of_the_mean(order, expected):
    """With x0 affine in x the mean follows the noiseless recursion of "er" itself: to alpha_t mean, at the method's order."""
    ends = -math.log(10), -math.log(0.15)
    start = SMOOTH.mean[None] + 3.0
    fine = sample(SMOOTH, ERSDE(3, s_noise=0.0), start, graded(1024, *ends))
    coarse = [(sample(SMOOTH, ERSDE(order, s_noise=0.0), start, graded(n, *ends)) - fine).abs().max() for n in (48, 96)]
    assert abs(math.log2(coarse[0] / coarse[1]) - expected) < 0.15


def test_the_sde_scale_at_order_1_is_euler_ancestral():
    path, start = VariancePreserving.linear(), torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
    levels, mixture = get_grid("karras", path, 12), Mixture.example(path)
    ours = sample(mixture, ERSDE(1, "sde"), start, levels, noise=Replay(start))
    theirs = sample(mixture, Multistep(1, 1.0), start, levels, noise=Replay(start))
    assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_marginals(order):
    """From pure noise to clean data on a flow, mean and variance within four standard errors."""
    path, count = RectifiedFlow(), 20000
    mean, std = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    steps = {1: 300, 2: 60, 3: 60}[order]
    levels = [path(1.0), *(path.at_logsnr(-4 + 9 * i / steps) for i in range(steps + 1)), path(0.0)]
    context = Context()
    x = sample(Gaussian(path, mean, std, "flow"), ERSDE(order), z, levels, noise=Replay(z, 3), context=context)
    assert ((x.mean(0) - mean).abs() < 4 * std / count**0.5).all()
    assert ((x.var(0) / std**2 - 1).abs() < 4 * (2 / count) ** 0.5).all()
    assert context.evaluations == count * (len(levels) - 1)


@pytest.mark.parametrize("path", [VariancePreserving.linear(), RectifiedFlow()], ids=["VP", "RF"])
@pytest.mark.parametrize("solver", [ERSDE(3), ERSDE(3, "ode"), ERSDE(3, rule="published")], ids=str)
def test_every_path_takes_the_same_steps(path, solver):
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def run(path):
        levels = [path.at_logsnr(v) for v in (-3.5, -1.9, -0.6, 0.1, 1.2, 2.0)] + [path(0.0)]
        return sample(Mixture.example(path), solver, levels[0].sigma * z, levels, noise=Replay(z))

    assert (run(path) - run(VE)).abs().max() < 1e-10


def test_settings_are_checked():
    x = torch.ones(1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="choose scale='ode'"):
        sample(SMOOTH, ERSDE(), x, [VE(2.0), VE(1.0)])
    assert torch.isfinite(sample(SMOOTH, ERSDE(scale="ode"), x, [VE(2.0), VE(1.0)])).all()
    with pytest.raises(ValueError, match="fall in noise"):
        sample(SMOOTH, ERSDE(), x, [VE(1.0), VE(2.0)], noise=Replay(x))
    for options in ({"order": 4}, {"scale": "vp"}, {"rule": "midpoint"}):
        with pytest.raises(ValueError, match="choose"):
            ERSDE(**options)
    with pytest.raises(ValueError, match="s_noise"):
        ERSDE(s_noise=-1.0)
    assert get_solver("er_sde", scale="ode") == ERSDE(scale="ode")
