"""The trigonometric path and the continuous VP process: closed forms, exact ends, derivatives, and the usual runs on them."""

import math

import pytest
import torch

from samplers import Condition, Context, Multistep, NoiseLevel, RectifiedFlow, VarianceExploding, VariancePreserving, sample
from samplers.analytic import Gaussian, Mixture
from samplers.path import Trigonometric, VariancePreservingSDE

TRIG, SDE = Trigonometric(), VariancePreservingSDE()
PATHS = {"trigonometric": TRIG, "VP SDE": SDE, "steep VP SDE": VariancePreservingSDE(0.5, 60.0)}


def test_cosine_and_sine():
    for t in (0.0, 1e-9, 0.3, 1.0, 1.57):
        level = TRIG(t)
        assert math.isclose(level.alpha, math.cos(t), abs_tol=1e-16) and math.isclose(level.sigma, math.sin(t))
        if t:
            assert math.isclose(level.logsnr, -math.log(math.tan(t)), rel_tol=1e-12, abs_tol=1e-12)


def test_both_ends_are_exact():
    assert (TRIG(0.0).alpha, TRIG(0.0).sigma) == (1.0, 0.0)
    noise = TRIG(TRIG.t_noise)
    assert (noise.alpha, noise.sigma, noise.logsnr) == (0.0, 1.0, -math.inf)
    assert TRIG.at_logsnr(math.inf) == NoiseLevel(0.0, 1.0, 0.0)
    assert TRIG.at_logsnr(-math.inf) == NoiseLevel(math.pi / 2, 0.0, 1.0)
    clean = SDE(0.0)
    assert (clean.alpha, clean.sigma) == (1.0, 0.0) and SDE.at_logsnr(math.inf).t == 0


@pytest.mark.parametrize("u", [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", PATHS)
def test_at_logsnr_is_the_inverse_to_rounding(name, u):
    path = PATHS[name]
    level = path(u * path.t_noise)
    back = path.at_logsnr(level.logsnr)
    for a, b in ((back.t, level.t), (back.alpha, level.alpha), (back.sigma, level.sigma)):
        assert math.isclose(a, b, rel_tol=1e-12)
    assert math.isclose(back.logsnr, level.logsnr, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_rate_is_the_derivative_by_autograd(name):
    path = PATHS[name]
    t = (torch.tensor([1e-3, 0.1, 0.5, 0.9, 0.99], dtype=torch.float64) * path.t_noise).requires_grad_()
    level = path(t)
    for value, rate in zip((level.alpha, level.sigma), path.rate(level), strict=True):
        (slope,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        assert torch.allclose(slope, rate, rtol=1e-12, atol=1e-14)


def test_the_sde_path_has_its_noise_rate():
    """alpha^2 is exp(-integral of beta), with beta by quadrature."""
    t, n = 0.7, 20000
    beta = [0.1 + 19.9 * t * (i + 0.5) / n for i in range(n)]
    assert math.isclose(SDE(t).alpha ** 2, math.exp(-sum(beta) * t / n), rel_tol=1e-10)
    assert math.isinf(SDE.rate(SDE(0.0))[1])


def test_the_linear_table_approaches_the_sde():
    """DDPM's betas are the SDE's noise rate over 1000 steps."""
    table = VariancePreserving.linear(0.1 / 1000, 20 / 1000)
    for t in (0.05, 0.3, 0.8, 1.0):
        assert abs(table(t).logsnr - SDE(t).logsnr) < 0.06


@pytest.mark.parametrize("bounds", [(0.0, 20.0), (3.0, 2.0), (0.1, math.inf), (math.nan, 20.0)])
def test_bad_rates_are_refused(bounds):
    with pytest.raises(ValueError, match="0 < beta_min <= beta_max"):
        VariancePreservingSDE(*bounds)


def test_the_flow_prediction_is_dx_dt():
    """On TrigFlow the flow is cos(t) eps - sin(t) x0: what v means there."""
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    level = TRIG(0.8)
    p = Mixture.example(TRIG, "flow")(x, level, Condition(), Context())
    assert torch.allclose(p.raw, math.cos(0.8) * p.eps - math.sin(0.8) * p.x0, atol=1e-14)
    assert torch.allclose(p.flow(TRIG), p.v, atol=1e-14)


@pytest.mark.parametrize("kind", ["x0", "flow", "v"])
def test_from_pure_noise_to_data(kind):
    """Second order along the clock, against the exact flow of a Gaussian from t = pi / 2 to 0."""
    mean, std = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    gaussian = Gaussian(TRIG, mean, std, kind)
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels = [TRIG(TRIG.t_noise * (1 - i / 100)) for i in range(101)]
    assert levels[-1].sigma == 0 and levels[0].alpha == 0
    assert (sample(gaussian, Multistep(2), z, levels) - (mean + std * z)).abs().max() < 4e-3


@pytest.mark.parametrize("name", PATHS)
def test_same_run_as_on_other_paths(name):
    """x / alpha follows the same numbers on every path through the same log-SNR."""
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def run(path):
        levels = [path.at_logsnr(v) for v in (-3.0, -2.1, -0.6, 0.4, 1.7, 3.0, math.inf)]
        return sample(Mixture.example(path), Multistep(3), z * levels[0].sigma, levels)

    for other in (VarianceExploding(), RectifiedFlow()):
        assert (run(PATHS[name]) - run(other)).abs().max() < 1e-10
