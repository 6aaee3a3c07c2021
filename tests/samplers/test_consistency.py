"""Consistency, LCM and TCD sampling: the published algorithms and diffusers' schedulers."""

import math

import pytest
import torch

from samplers import (
    Condition,
    Context,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
)
from samplers.analytic import Gaussian, Mixture
from samplers.solvers.consistency import TCD, BoundaryScaled, Consistency
from tests.samplers.references import Replay

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PATHS = {"VE": VarianceExploding(), "VP": VariancePreserving.linear(), "RF": RectifiedFlow()}


@pytest.fixture
def start():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def relative(ours, theirs):
    return (ours - theirs).abs().max() / theirs.abs().max()


def raw(mixture, x, path, t):
    return mixture(x, path.discrete(float(t)), Condition(), Context()).raw


def test_algorithm_1(start):
    """arXiv 2303.01469, Algorithm 1, line by line with epsilon = 0.002."""
    path, mixture = PATHS["VE"], Mixture.example(PATHS["VE"])
    sigmas, epsilon, noise = [80.0, 24.0, 5.8, 0.7, 0.002], 0.002, Replay(start)
    x = mixture(80 * start, path(80.0), Condition(), Context()).x0
    for sigma in sigmas[1:]:
        there = x + math.sqrt(sigma**2 - epsilon**2) * noise()
        x = mixture(there, path(sigma), Condition(), Context()).x0
    levels = [*(path(v) for v in sigmas), path(0.0)]
    ours = sample(mixture, Consistency(sigma_min=0.002), 80 * start, levels, noise=Replay(start))
    assert (ours - x).abs().max() < 1e-12  # the level sigma = epsilon gets no noise
    assert relative(sample(mixture, Consistency(), 80 * start, levels[:-2], noise=Replay(start)), there) > 0.1


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize(("steps", "scaling"), [(1, 10.0), (4, 10.0), (4, 0.002)])
def test_lcm_is_diffusers(start, kind, steps, scaling):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.LCMScheduler(
        **BETAS, timestep_scaling=scaling, prediction_type={"eps": "epsilon", "v": "v_prediction"}[kind]
    )
    scheduler.set_timesteps(steps)
    path = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod)
    mixture, theirs, generator = Mixture.example(path, kind), start, torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        theirs = scheduler.step(raw(mixture, theirs, path, t), t, theirs, generator=generator, return_dict=False)[0]
    levels = [*(path.discrete(float(t)) for t in scheduler.timesteps), path(0.0)]
    ours = sample(BoundaryScaled(mixture, scaling), get_solver("lcm"), start, levels, noise=Replay(start, 4))
    assert relative(ours, theirs) < 5e-6
    if scaling == 0.002:
        without = sample(mixture, get_solver("lcm"), start, levels, noise=Replay(start, 4))
        assert relative(without, theirs) > 1e-3


def test_the_boundary_is_the_identity(start):
    path = PATHS["VP"]
    level = path.discrete(0.0)
    assert torch.equal(BoundaryScaled(Mixture.example(path))(start, level, Condition(), Context()).x0, start)
    with pytest.raises(ValueError, match="RectifiedFlow has no table"):
        BoundaryScaled(Mixture.example(PATHS["RF"]))
    with pytest.raises(ValueError, match="must be above 0"):
        BoundaryScaled(Mixture.example(path), sigma_data=0.0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_tcd_is_diffusers(start, eta, steps):
    """Theirs ends at the table's first entry, not at clean data."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.TCDScheduler(**BETAS)
    scheduler.set_timesteps(steps)
    path = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod)
    mixture, theirs, generator = Mixture.example(path, "eps"), start, torch.Generator().manual_seed(4)
    for t in scheduler.timesteps:
        theirs = scheduler.step(raw(mixture, theirs, path, t), t, theirs, eta=eta, generator=generator, return_dict=False)[0]
    levels = [*(path.discrete(float(t)) for t in scheduler.timesteps), path.discrete(0.0)]
    ours = sample(mixture, TCD(eta), start, levels, noise=Replay(start, 4))
    assert relative(ours, theirs) < 5e-6
    to_data = [*levels[:-1], path(0.0)]
    ours = sample(mixture, TCD(eta, "timestep 0"), start, to_data, noise=Replay(start, 4))
    assert relative(ours, theirs) < 5e-6
    assert relative(sample(mixture, TCD(eta), start, to_data, noise=Replay(start, 4)), theirs) > 1e-4


def test_tcd_without_noise_is_ddim(start):
    path, mixture = PATHS["RF"], Mixture.example(PATHS["RF"], "flow")
    levels = get_grid("uniform", path, 6)
    assert (sample(mixture, TCD(0.0), start, levels) - sample(mixture, Multistep(1), start, levels)).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("path", ["RF", "VE"])
def test_tcd_on_a_clock_goes_down_and_up_again(start, path, eta):
    """x_t = (alpha_t / alpha_s') x_s' + the missing noise, at s' = (1 - eta) t."""
    path = PATHS[path]
    mixture, s, t = Mixture.example(path), path(0.9), path(0.5)
    prediction = mixture(start, s, Condition(), Context())
    below, z = path((1 - eta) * 0.5), Replay(start)()
    ratio = t.alpha / below.alpha
    expected = ratio * (below.alpha * prediction.x0 + below.sigma * prediction.eps)
    expected = expected + math.sqrt(t.sigma**2 - (ratio * below.sigma) ** 2) * z
    assert (sample(mixture, TCD(eta), start, [s, t], noise=Replay(start)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", [Consistency(), TCD(0.3), TCD(1.0)], ids=str)
def test_a_perfect_model_gives_the_marginals(name, solver):
    """Point-mass data, where one jump is exact: mean and variance at the last level within four standard errors."""
    path, count = PATHS[name], 20000
    point = Gaussian(path, torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    levels = [path.at_logsnr(v) for v in (-3.0, -1.0, 0.2, 0.8)]
    begin = point.sample(count, levels[0], torch.Generator().manual_seed(1))
    x = sample(point, solver, begin, levels, noise=Replay(begin, 5))
    mean, variance = point.marginal(levels[-1])
    assert ((x.mean(0) - mean).abs() < 4 * (variance / count).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / count) ** 0.5).all()


@pytest.mark.parametrize("solver", [Consistency(), TCD(0.3), TCD(1.0)], ids=str)
@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving.scaled_linear(zero_terminal_snr=True)], ids=["RF", "VP"])
def test_from_pure_noise_to_clean_data(start, solver, path):
    mixture, context = Mixture.example(path, "v"), Context()
    x = sample(mixture, solver, start, get_grid("uniform", path, 5), noise=Replay(start), context=context)
    assert torch.isfinite(x).all() and context.evaluations == 5 * len(start)


def test_consistency_is_the_same_on_every_path(start):
    def run(path):
        levels = [path.at_logsnr(v) for v in (-3.0, -1.0, 0.2, 0.8)] + [path(0.0)]
        return sample(Mixture.example(path), Consistency(), levels[0].sigma * start, levels, noise=Replay(start))

    for path in (PATHS["VE"], PATHS["RF"]):
        assert (run(path) - run(PATHS["VP"])).abs().max() < 1e-10


def test_settings_are_checked(start):
    path = PATHS["RF"]
    levels, mixture = get_grid("uniform", path, 3), Mixture.example(path, "flow")
    for solver in (Consistency(), TCD()):
        with pytest.raises(ValueError, match="pass noise="):
            sample(mixture, solver, start, levels)
        with pytest.raises(ValueError, match="fall in noise"):
            sample(mixture, solver, start, levels[1:3][::-1], noise=Replay(start))
        assert torch.isfinite(sample(mixture, solver, start, [levels[1], levels[-1]])).all()  # one step needs no noise
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        TCD(1.5)
    with pytest.raises(ValueError, match="choose 'clean' or 'timestep 0'"):
        TCD(end="zero")
    with pytest.raises(ValueError, match="no table of timesteps to end on"):
        sample(
            Mixture.example(PATHS["RF"]), TCD(end="timestep 0"), start, get_grid("uniform", PATHS["RF"], 2), noise=Replay(start)
        )
    with pytest.raises(ValueError, match="sigma_min=-1"):
        Consistency(sigma_min=-1)
