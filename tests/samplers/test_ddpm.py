"""DDPM ancestral sampling against diffusers, its learned variance, and the marginals it keeps."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch

from samplers import (
    ClassifierFree,
    Condition,
    Context,
    Multistep,
    NetworkDenoiser,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
)
from samplers.analytic import Gaussian, Mixture
from samplers.noise import seeded_noise
from samplers.solvers.ddpm import DDPM, VARIANCES
from tests.samplers.references import Replay

VP = VariancePreserving.linear()


@dataclass(frozen=True)
class Learned:
    """A denoiser with a variance output that differs from pixel to pixel."""

    denoiser: Mixture

    @property
    def path(self):
        return self.denoiser.path

    def __call__(self, x, level, condition, context):
        prediction = self.denoiser(x, level, condition, context)
        return replace(prediction, variance=torch.tanh(prediction.x0))


@pytest.fixture
def start():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_ddpm_is_diffusers(start, steps, variance):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, variance_type=variance, clip_sample=False)
    scheduler.alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    scheduler.set_timesteps(steps)
    path = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod)
    count = 50  # the whole range of levels at 50 and 7 steps; the noisy ones at 1000
    levels, timesteps = get_grid("leading", path, steps)[: count + 1], scheduler.timesteps[:count]
    learned, theirs, generator = Learned(Mixture.example(path, "eps")), start, torch.Generator().manual_seed(4)
    for t, level in zip(timesteps, levels, strict=False):
        prediction = learned(theirs, level, Condition(), Context())
        raw = torch.cat([prediction.eps, prediction.variance], 1) if variance == "learned_range" else prediction.eps
        theirs = scheduler.step(raw, t, theirs, generator=generator, return_dict=False)[0]
    ours = sample(learned, DDPM(variance), start, levels, noise=Replay(start, 4))
    assert (ours - theirs).abs().max() / theirs.abs().max() < 5e-6


@pytest.mark.parametrize("path", [VP, VarianceExploding(), RectifiedFlow()], ids=["VP", "VE", "RF"])
def test_small_variance_is_euler_ancestral(start, path):
    levels = [path.at_logsnr(v) for v in (-3.0, -1.0, -0.2, 0.5, 2.0)]
    mixture = Mixture.example(path)
    ours = sample(mixture, DDPM(), levels[0].sigma * start, levels, noise=Replay(start))
    theirs = sample(mixture, Multistep(1, 1.0, "ancestral"), levels[0].sigma * start, levels, noise=Replay(start))
    assert (ours - theirs).abs().max() < 1e-12


def test_learned_variance_lies_between_the_fixed_ones(start):
    """The output -1 is fixed_small, 1 is fixed_large, 0 the geometric mean."""
    s, t = VP(0.6), VP(0.3)
    x0 = torch.zeros_like(start)

    def noise_std(solver, variance):
        prediction = replace(Mixture.example(VP)(start, s, Condition(), Context()), variance=variance).with_x0(x0)
        state = replace(solver.init(start), prediction=prediction)
        z = (torch.zeros_like(start), torch.ones_like(start))
        still, moved = (solver.step(Mixture.example(VP), state, s, t, Condition(), Context(), lambda s, t, v=v: v).x for v in z)
        return moved - still

    small, large = noise_std(DDPM("fixed_small"), None), noise_std(DDPM("fixed_large"), None)
    assert (large > 1.01 * small).all()
    for output, expected in ((-1.0, small), (1.0, large), (0.0, (small * large).sqrt())):
        assert torch.allclose(noise_std(DDPM("learned_range"), torch.full_like(start, output)), expected, rtol=1e-13)


def test_learned_variance_passes_through_guidance(start):
    """A network with twice the channels under classifier-free guidance: the conditional branch's variance is the one used."""

    def network(x, time, condition, context):
        return torch.cat([0.1 * x, torch.where(condition.label >= 0, 0.5, -0.5)[:, None].to(x) * torch.ones_like(x)], 1)

    leaf = NetworkDenoiser(network, VP, "eps", "index", learned_variance=True)
    guided, condition = ClassifierFree(leaf, 3.0), Condition(label=torch.zeros(6, dtype=torch.long))
    levels = [VP(0.6), VP(0.3)]
    x = sample(guided, DDPM("learned_range"), start, levels, condition, noise=Replay(start))
    plain = sample(leaf, DDPM("learned_range"), start, levels, condition, noise=Replay(start))
    assert torch.allclose(x, plain, atol=1e-12)  # eps does not depend on the label here, so guidance changes nothing
    null = sample(leaf, DDPM("learned_range"), start, levels, condition.null(), noise=Replay(start))
    assert (x - null).abs().max() > 1e-3


@pytest.mark.parametrize("path", [VarianceExploding(), RectifiedFlow()], ids=["VE", "RF"])
@pytest.mark.parametrize("variance", VARIANCES)
def test_every_path_takes_the_same_steps(start, path, variance):
    def run(path):
        levels = [path.at_logsnr(v) for v in (-3.5, -1.9, -0.6, 0.1, 1.2, 2.0)] + [path(0.0)]
        return sample(Learned(Mixture.example(path)), DDPM(variance), levels[0].sigma * start, levels, noise=Replay(start))

    assert (run(path) - run(VP)).abs().max() < 1e-10


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_marginals_from_pure_noise(variance):
    """On many steps both keep the marginals of a Gaussian, from pure noise to clean data."""
    path, count = VariancePreserving.linear(zero_terminal_snr=True), 10000
    mean, std = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    levels = [path(1.0), *(path.at_logsnr(-5 + 10.5 * i / 600) for i in range(601)), path(0.0)]
    x = sample(Gaussian(path, mean, std), DDPM(variance), z, levels, noise=Replay(z, 3))
    assert ((x.mean(0) - mean).abs() < 4 * std / count**0.5).all()
    assert ((x.var(0) / std**2 - 1).abs() < 4 * (2 / count) ** 0.5).all()


def test_s_noise_and_errors(start):
    mixture, levels = Mixture.example(VP), [VP(0.6), VP(0.3)]
    silent = sample(mixture, DDPM(s_noise=0.0), start, levels)
    half, full = (sample(mixture, DDPM(s_noise=v), start, levels, noise=Replay(start)) for v in (0.5, 1.0))
    assert torch.allclose(half - silent, (full - silent) / 2, atol=1e-14)
    with pytest.raises(ValueError, match="pass noise="):
        sample(mixture, DDPM(), start, levels)
    with pytest.raises(ValueError, match="choose fixed_small or fixed_large"):
        sample(mixture, DDPM("learned_range"), start, levels, noise=Replay(start))
    with pytest.raises(ValueError, match="fall in noise"):
        sample(mixture, DDPM(), start, levels[::-1], noise=Replay(start))
    with pytest.raises(ValueError, match="choose one of fixed_small"):
        DDPM("fixed")
    with pytest.raises(ValueError, match="s_noise"):
        DDPM(s_noise=-1.0)
    assert get_solver("ddpm", variance="learned_range") == DDPM("learned_range")


class Told:
    """An exact denoiser that keeps the noise that it is handed beside x."""

    def __init__(self, denoiser):
        self.denoiser, self.path, self.kept = denoiser, denoiser.path, []

    def __call__(self, x, level, condition, context):
        self.kept.append(condition.extra["latent"])
        return self.denoiser(x, level, condition, context)


def test_a_network_that_draws_is_handed_noise_of_its_own_at_every_step():
    seeds, path = list(range(200)), RectifiedFlow()
    x = torch.zeros(200, 1, 2, 2)
    noise = seeded_noise(seeds, x)
    levels = get_grid("uniform", path, 3)
    told = Told(Gaussian(path, torch.zeros(1, 2, 2), torch.ones(1, 2, 2)))
    sample(told, get_solver("ddpm", latent=10), x, levels, Condition(), noise=noise)
    found = torch.stack(told.kept)
    assert found.shape == (3, 200, 10)
    assert abs(found.mean()) < 0.05 and abs(found.std() - 1) < 0.05
    rows = torch.cat([found.flatten(0, 1)[:, :4], torch.cat([noise(*pair).flatten(1) for pair in pairwise(levels)])], 1)
    assert (torch.corrcoef(rows.T) - torch.eye(8)).abs().max() < 0.15  # of one another, and of the noise of x
    assert (torch.corrcoef(found[:, :, 0]) - torch.eye(3)).abs().max() < 0.25  # of other steps
    alone = Told(told.denoiser)
    sample(alone, get_solver("ddpm", latent=10), x[7:8], levels, Condition(), noise=seeded_noise([7], x[7:8]))
    assert torch.equal(torch.stack(alone.kept)[:, 0], found[:, 7])  # whatever its batch


def test_noise_for_the_network_changes_nothing_of_one_that_does_not_read_it():
    x, path = torch.ones(2, 1, 2, 2), RectifiedFlow()
    denoiser, levels = Gaussian(path, torch.zeros(1, 2, 2), torch.ones(1, 2, 2)), get_grid("uniform", path, 3)
    plain, told = (
        sample(denoiser, get_solver("ddpm", latent=n), x, levels, Condition(), noise=seeded_noise([1, 2], x)) for n in (0, 5)
    )
    assert torch.equal(plain, told)


@pytest.mark.parametrize("latent", [-1, 1.5, True, 10**9])
def test_how_many_numbers_are_handed_over_is_checked(latent):
    with pytest.raises(ValueError, match=r"how many numbers the network receives, 0 \(none\) to 4096"):
        DDPM(latent=latent)
