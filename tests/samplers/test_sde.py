"""Stochastic solvers keep the exact marginals of the process."""

import pytest
import torch

from samplers import (
    Heun,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    brownian_noise,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.analytic import Gaussian
from samplers.noise import normal
from tests.samplers.references import Replay

COUNT = 20000
MEAN, STD = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
PATHS = {"VE": VarianceExploding(), "VP": VariancePreserving.linear(), "RF": RectifiedFlow()}


def within_four_standard_errors(x, mean, variance):
    assert ((x.mean(0) - mean).abs() < 4 * (variance / COUNT).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / COUNT) ** 0.5).all()


def run(gaussian, solver, levels, seed):
    start = gaussian.sample(COUNT, levels[0], torch.Generator().manual_seed(seed))
    return sample(gaussian, solver, start, levels, noise=Replay(start, seed + 100))


@pytest.mark.parametrize("noise", ["sde", "ancestral"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("path", PATHS)
def test_a_point_mass_is_exact_with_few_steps(path, eta, noise):
    """x0 is constant, so equation (1) is exact: four large steps must give mean and variance to the last level."""
    path = PATHS[path]
    point = Gaussian(path, MEAN, torch.zeros_like(MEAN))
    levels = [path.at_logsnr(v) for v in (-2.0, -1.2, -0.9, 0.3, 0.8)]
    x = run(point, Multistep(2, eta=eta, noise=noise), levels, 1)
    within_four_standard_errors(x, *point.marginal(levels[-1]))


@pytest.mark.parametrize(
    "solver",
    [
        Multistep(2, eta=1.0, rule="midpoint"),
        Multistep(2, eta=1.0),
        Multistep(3, eta=1.0),
        Multistep(2, eta=0.5, noise="ancestral"),
        Multistep(3, eta=1.0, corrector_order=4),
        Heun(s_churn=10.0),
    ],
    ids=str,
)
def test_gaussian_marginals(solver):
    path = PATHS["VP"]
    gaussian = Gaussian(path, MEAN, STD)
    levels = [path.at_logsnr(-3 + 5 * i / 50) for i in range(51)]
    within_four_standard_errors(run(gaussian, solver, levels, 3), *gaussian.marginal(levels[-1]))


def test_s_noise_scales_the_noise():
    path = PATHS["VE"]
    point = Gaussian(path, MEAN, torch.zeros_like(MEAN))
    levels = [path(4.0), path(2.0)]
    x = run(point, Multistep(1, eta=1.0, s_noise=0.5), levels, 5)
    # x_t - mean = (sigma_t^2 / sigma_s) z1 + s_noise sigma_t sqrt(1 - (sigma_t / sigma_s)^2) z2
    variance = torch.full_like(MEAN, (4 / 4) ** 2 + 0.25 * 4 * (1 - 1 / 4))
    within_four_standard_errors(x, MEAN, variance)


@pytest.mark.parametrize("solver", [Multistep(2, eta=1.0), Heun(s_churn=5.0)], ids=str)
def test_missing_noise_is_a_sentence(solver):
    path = PATHS["VE"]
    with pytest.raises(ValueError, match="pass noise="):
        sample(Gaussian(path, MEAN, STD), solver, torch.zeros(1, 2).double(), [path(4.0), path(2.0), path(1.0)])


def test_an_image_depends_on_its_own_seed_only():
    """Three images at once and the second alone: the same numbers to the last bit."""
    path = PATHS["RF"]
    gaussian = Gaussian(path, MEAN, STD)
    levels = [path(1 - i / 6) for i in range(7)]

    def images(seeds):
        start = normal(seeds, (2,), "start", dtype=torch.float64)
        return sample(gaussian, Multistep(2, eta=1.0), start, levels, noise=seeded_noise(seeds, start))

    together, alone = images([11, 12, 13]), images([12])
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", ["dpmpp_sde", "comfy:dpmpp_sde"])
def test_dpmpp_sde_keeps_its_spread_with_seeded_noise(name):
    """Its draws overlap. Independent ones would cost an eighth of the spread; here they are joined as one path's."""
    gaussian = Gaussian(VarianceExploding(0.02, 20.0), torch.zeros(1).double(), torch.ones(1).double())
    levels, seeds = get_grid("karras", gaussian.path, 12), range(4000)
    x = normal(seeds, (1,), "start", dtype=torch.float64) * levels[0].sigma
    plain = seeded_noise(seeds, x)
    joined, brownian, apart = (
        sample(gaussian, get_solver(name), x, levels, noise=noise).std()
        for noise in (plain, brownian_noise(seeds, x), lambda s, t: plain(s, t))
    )
    assert abs(joined / brownian - 1) < 4 / (2 * len(seeds)) ** 0.5  # four standard errors
    assert apart / brownian < 0.93
