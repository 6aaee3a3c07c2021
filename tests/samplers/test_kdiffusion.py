"""Our solvers and grids against k-diffusion's, in float64, to rounding."""

import pytest
import torch

from samplers import Multistep, VarianceExploding, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.solvers import Heun
from tests.samplers.references import Replay, k_diffusion, k_model, k_sigmas

PATH = VarianceExploding(0.05, 20.0)
TOLERANCE = 1e-12


@pytest.fixture
def kd():
    return k_diffusion()


@pytest.fixture
def start():
    return 20 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_same(solver, reference, start, noise=None, grid="karras", steps=12):
    denoiser, levels = Mixture.example(PATH), get_grid(grid, PATH, steps)
    ours = sample(denoiser, solver, start, levels, noise=noise)
    theirs = reference(k_model(denoiser), start, k_sigmas(levels))
    assert (ours - theirs).abs().max() < TOLERANCE
    assert ours.abs().max() < 10  # both reached the data


@pytest.mark.parametrize("grid", ["karras", "uniform_logsnr"])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("euler", "sample_euler"), ("ddim", "sample_euler"), ("dpmpp_2m", "sample_dpmpp_2m"), ("heun", "sample_heun")],
)
def test_deterministic(kd, start, name, reference, grid):
    function = getattr(kd, reference)
    assert_same(get_solver(name), lambda m, x, s: function(m, x, s, disable=True), start, grid=grid)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_euler_ancestral(kd, start, eta):
    def reference(model, x, sigmas):
        return kd.sample_euler_ancestral(model, x, sigmas, disable=True, eta=eta, noise_sampler=Replay(start))

    assert_same(get_solver("euler_a", eta=eta), reference, start, Replay(start))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("name", "kind"), [("dpmpp_2m_sde", "midpoint"), ("dpmpp_2m_sde_heun", "heun")])
def test_2m_sde(kd, start, eta, name, kind):
    def reference(model, x, sigmas):
        noise = Replay(start)
        return kd.sample_dpmpp_2m_sde(
            model, x, sigmas, disable=True, eta=eta, s_noise=0.9, noise_sampler=noise, solver_type=kind
        )

    assert_same(get_solver(name, eta=eta, s_noise=0.9), reference, start, Replay(start))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_3m_sde(kd, start, eta):
    def reference(model, x, sigmas):
        return kd.sample_dpmpp_3m_sde(model, x, sigmas, disable=True, eta=eta, noise_sampler=Replay(start))

    assert_same(get_solver("dpmpp_3m_sde", eta=eta), reference, start, Replay(start))


def test_res_multistep_is_2m_sde_heun_without_noise(kd, start):
    def reference(model, x, sigmas):
        return kd.sample_dpmpp_2m_sde(model, x, sigmas, disable=True, eta=0, noise_sampler=Replay(start), solver_type="heun")

    assert_same(get_solver("res_multistep"), reference, start)


def test_heun_with_churn(kd, start):
    torch.manual_seed(5)
    zs = iter([torch.randn_like(start) for _ in range(12)])

    def reference(model, x, sigmas):
        torch.manual_seed(5)
        return kd.sample_heun(model, x, sigmas, disable=True, s_churn=4.0, s_noise=1.003)

    assert_same(Heun(s_churn=4.0, s_noise=1.003), reference, start, lambda s, t: next(zs))


def test_heun_with_churn_in_an_interval(kd, start):
    """k-diffusion draws at every step, we only where churn acts: the draws are lined up by hand."""
    levels = get_grid("karras", PATH, 12)
    torch.manual_seed(5)
    draws = [torch.randn_like(start) for _ in range(12)]
    churned = [z for z, level in zip(draws, levels, strict=False) if 0.3 <= level.sigma <= 5]
    assert 0 < len(churned) < 12
    zs = iter(churned)

    def reference(model, x, sigmas):
        torch.manual_seed(5)
        return kd.sample_heun(model, x, sigmas, disable=True, s_churn=4.0, s_tmin=0.3, s_tmax=5.0)

    assert_same(Heun(s_churn=4.0, s_tmin=0.3, s_tmax=5.0), reference, start, lambda s, t: next(zs))
    assert next(zs, None) is None


def test_published_and_exact_3m_differ(kd, start):
    """The halved second moment is not rounding: the identity above would fail with exact coefficients."""
    denoiser, levels = Mixture.example(PATH), get_grid("karras", PATH, 12)
    published = sample(denoiser, Multistep(3, rule="published"), start, levels)
    exact = sample(denoiser, Multistep(3, rule="exact"), start, levels)
    assert (published - exact).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize(
    ("grid", "reference", "options"),
    [
        ("karras", "get_sigmas_karras", {"rho": 7.0}),
        ("karras", "get_sigmas_karras", {"rho": 3.0}),
        ("exponential", "get_sigmas_exponential", {}),
        ("polyexponential", "get_sigmas_polyexponential", {"rho": 1.5}),
    ],
)
def test_grids(kd, grid, reference, options, steps):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # k-diffusion builds its ramps in the default dtype
    try:
        theirs = getattr(kd, reference)(steps, 0.03, 15.0, **options)
    finally:
        torch.set_default_dtype(before)
    ours = k_sigmas(get_grid(grid, PATH, steps, sigma_min=0.03, sigma_max=15.0, **options))
    assert torch.allclose(ours, theirs, rtol=1e-13, atol=0)
