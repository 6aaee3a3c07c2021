"""The grids of ComfyUI, AUTOMATIC1111 and k-diffusion, each against its formula written out by hand, in float64."""

import math

import numpy as np
import pytest
import torch

from samplers import RectifiedFlow, VarianceExploding, VariancePreserving, get_grid
from samplers import grids as g
from samplers.path import Trigonometric
from tests.samplers.references import k_diffusion, k_sigmas

VE, RF, TRIG = VarianceExploding(0.03, 15.0), RectifiedFlow(), Trigonometric()
VP = VariancePreserving.scaled_linear()
TABLE = np.exp(-np.array(VP.table))  # sigma / alpha by timestep, as ComfyUI's model_sampling.sigmas
STEPS = [1, 2, 3, 7, 20, 30]


def ratios(levels):
    return np.array([v.sigma / v.alpha for v in levels])


@pytest.mark.parametrize("steps", STEPS)
def test_simple(steps):
    expected = [TABLE[-(1 + int(x * 1000 / steps))] for x in range(steps)]
    assert np.allclose(ratios(g.simple(VP, steps))[:-1], expected, rtol=1e-10)


@pytest.mark.parametrize("steps", STEPS)
def test_ddim_uniform(steps):
    """The DDIM code walks up from timestep 1 in strides of N // steps; the first `steps` of those are ours."""
    walk = list(range(1, 1000, max(1000 // steps, 1)))[:steps]
    assert np.allclose(ratios(g.ddim_uniform(VP, steps))[:-1], TABLE[walk][::-1], rtol=1e-10)


def test_ddim_uniform_is_diffusers_leading_with_its_offset():
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="leading", steps_offset=1
    )
    for steps in (4, 7, 30):
        scheduler.set_timesteps(steps)
        for levels in (g.ddim_uniform(VP, steps), get_grid("leading", VP, steps, offset=1)):
            assert [round(1000 * v.t) - 1 for v in levels[:-1]] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", STEPS)
def test_normal(steps):
    assert np.allclose([1000 * v.t - 1 for v in g.normal(VP, steps)[:-1]], np.linspace(999, 0, steps), atol=1e-9)
    assert np.allclose([v.t for v in g.normal(RF, steps)[:-1]], np.linspace(1, 0.001, steps), atol=1e-12)
    assert np.allclose(ratios(g.normal(VE, steps))[:-1], np.geomspace(15, 0.03, steps), rtol=1e-11)


@pytest.mark.parametrize("name", ["simple", "normal", "sgm_uniform", "beta", "ddim_uniform"])
def test_shift_on_a_flow(name):
    plain, moved = get_grid(name, RF, 6), get_grid(name, RF, 6, shift=3.0)
    for a, b in zip(plain, moved, strict=True):
        assert math.isclose(b.t, 3 * a.t / (1 + 2 * a.t), abs_tol=1e-15)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("path", [VE, VP, RF, TRIG], ids=lambda p: type(p).__name__)
def test_kl_optimal(path, steps):
    u = np.arange(steps) / max(steps - 1, 1)
    expected = np.tan(u * math.atan(0.05) + (1 - u) * math.atan(9.0))
    assert np.allclose(ratios(g.kl_optimal(path, steps, 0.05, 9.0))[:-1], expected, rtol=1e-10)


def test_kl_optimal_is_the_cosine_grid():
    """On alpha = cos t, sigma = sin t it is the clock that is even."""
    t = [v.t for v in get_grid("cosine", TRIG, 12)[:-1]]
    assert np.allclose(np.diff(t, 2), 0, atol=1e-13)


@pytest.mark.parametrize(("mu", "scale"), [(0.0, 0.5), (-0.5, 0.9)])
@pytest.mark.parametrize("steps", STEPS)
def test_laplace(steps, mu, scale):
    x = np.linspace(0, 1, steps)
    expected = np.exp(mu - scale * np.sign(0.5 - x) * np.log(1 - 2 * np.abs(0.5 - x) + 1e-5)).clip(0.001, 400)
    assert np.allclose(ratios(g.laplace(VE, steps, 0.001, 400.0, mu, scale))[:-1], expected, rtol=1e-12)


def test_laplace_has_the_quantiles_of_its_distribution():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    logs = np.log(ratios(g.laplace(VE, 41, 1e-6, 1e6, mu=0.3, beta=0.7))[1:-2])
    assert np.allclose(stats.laplace.cdf(logs, 0.3, 0.7), 1 - np.linspace(0, 1, 41)[1:-1], atol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
def test_vp_is_k_diffusion(steps):
    """With bounds that its two betas reach, and to rounding."""
    kd, default = k_diffusion(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        theirs = kd.get_sigmas_vp(steps, beta_d=8.0, beta_min=0.2, eps_s=1e-3)
    finally:
        torch.set_default_dtype(default)
    low, high = (math.sqrt(math.expm1(4.0 * t**2 + 0.2 * t)) for t in (1e-3, 1.0))
    assert torch.allclose(k_sigmas(g.vp(VE, steps, low, high)), theirs, rtol=1e-9, atol=0)


def test_vp_in_a_power_of_time():
    """rho = 2, by hand."""
    low, high, eps, n = 0.02, 12.0, 1e-3, 9
    a = np.array([[1 / 2, 1], [eps**2 / 2, eps]])
    d, m = np.linalg.solve(a, [math.log1p(high**2), math.log1p(low**2)])
    t = (1 + np.arange(n) / (n - 1) * (eps**0.5 - 1)) ** 2
    expected = np.sqrt(np.exp(d * t**2 / 2 + m * t) - 1)
    assert np.allclose(ratios(g.vp(RF, n, low, high, rho=2.0))[:-1], expected, rtol=1e-9)


@pytest.mark.parametrize("path", [VE, RF], ids=["VE", "RF"])
def test_iddpm(path):
    """The recursion solved: 1 + u_j^2 is the product of the clipped ratios from j on."""
    j = np.arange(1001)
    abar = np.sin(np.pi / 2 * j / (1000 * 1.008)) ** 2
    kept = np.maximum(abar[:-1] / abar[1:], 0.001)
    u = np.sqrt(1 / np.cumprod(kept[::-1])[::-1] - 1)
    assert np.allclose(u[0], 20291, rtol=1e-4) and np.allclose(u[8], 80.0, rtol=0.01)  # j0 = 8 of the paper is sigma 80
    between = u[(u >= 0.01) & (u <= 80.3)]
    for steps in (1, 2, 18, 40):
        places = np.rint(np.linspace(0, len(between) - 1, steps)).astype(int)
        assert np.allclose(ratios(g.iddpm(path, steps, 0.01, 80.3))[:-1], between[places], rtol=1e-9)


def movie_gen(steps, threshold, linear):
    """1 - sigma: even steps, then the parabola through the seam and through 1, with the slope of the line at the seam."""
    done = [threshold * i / linear for i in range(linear)]
    a = np.array([[linear**2, linear, 1], [steps**2, steps, 1], [2 * linear, 1, 0]], dtype=float)
    q, l, c = np.linalg.solve(a, [threshold, 1, threshold / linear])
    return np.array(done + [q * i * i + l * i + c for i in range(linear, steps)])


CASES = [(2, 0.025, None), (3, 0.025, None), (20, 0.025, None), (50, 0.025, 25), (30, 0.1, 8)]


@pytest.mark.parametrize(("steps", "threshold", "linear"), CASES)
def test_linear_quadratic(steps, threshold, linear):
    expected = 1 - movie_gen(steps, threshold, linear or steps // 2)
    levels = g.linear_quadratic(RF, steps, threshold, linear)
    assert np.allclose([v.t for v in levels[:-1]], expected, atol=1e-12)
    assert np.allclose(ratios(g.linear_quadratic(VE, steps, threshold, linear))[:-1], 15 * expected, rtol=1e-12)
    assert np.allclose(ratios(g.linear_quadratic(VP, steps, threshold, linear))[:-1], TABLE[-1] * expected, rtol=1e-9)
    assert levels[0].alpha == 0


@pytest.mark.parametrize("steps", STEPS)
def test_quadratic(steps):
    expected = np.linspace(1, 0.001**0.5, steps) ** 2
    assert np.allclose([v.t for v in g.quadratic(VP, steps)[:-1]], expected, rtol=1e-12)
    assert np.allclose([v.t for v in g.quadratic(RF, steps)[:-1]], expected, rtol=1e-12)
    cubic = np.linspace(15 ** (1 / 3), 0.5 ** (1 / 3), steps) ** 3
    assert np.allclose([v.t for v in g.quadratic(VE, steps, t_min=0.5, power=3.0)[:-1]], cubic, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g.laplace(VE, 4000), "does not fall"),
        (lambda: g.laplace(VE, 4, beta=0.0), "beta must be"),
        (lambda: g.laplace(VE, 4, mu=math.inf), "mu must be finite"),
        (lambda: g.kl_optimal(VE, 4, sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max"),
        (lambda: g.vp(VE, 4, eps_s=1.0), "0 < eps_s < 1"),
        (lambda: g.vp(VE, 4, rho=-1.0), "rho must be"),
        (lambda: g.iddpm(VE, 9, 1.0, 1.01), "levels with sigma / alpha from 1 to 1.01"),
        (lambda: g.linear_quadratic(RF, 4, threshold_noise=1.0), "0 < threshold_noise < 1"),
        (lambda: g.linear_quadratic(RF, 4, linear_steps=4), "from 1 to 3 for 4 steps"),
        (lambda: g.quadratic(RF, 4, t_min=1.0), "t_min must lie"),
        (lambda: g.quadratic(RF, 4, power=0.0), "power must be"),
        (lambda: g.simple(VP, 1001), "does not fall"),
        (lambda: g.ddim_uniform(VP, 1000), "distinct ones from number 1"),
        (lambda: g.simple(VE, 4, shift=2.0), "clock from 0 to 1"),
        (lambda: g.uniform_time(VP, 4, offset=1), "belongs to spacing='leading'"),
        (lambda: g.from_table(VE, [-800.0], "logsnr"), "does not have"),
        (lambda: g.from_table(VP, [-800.0], "logsnr"), "does not have"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names_of_other_tools():
    for label in ("KL Optimal", "Simple", "Normal", "DDIM uniform", "Linear Quadratic", "SGM Uniform", "Align Your Steps"):
        assert len(get_grid(label, VP, 5)) == 6
