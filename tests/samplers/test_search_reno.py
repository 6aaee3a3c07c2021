"""ReNO against torch's own optimiser, sample by sample, and the best of several by brute force."""

import math

import pytest
import torch

from samplers import VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.search import best_of, log_radius, reno

G = torch.Generator().manual_seed(4)
NOISE = torch.randn(4, 2, 3, generator=G, dtype=torch.float64)
MATRIX = torch.randn(6, 5, generator=G, dtype=torch.float64)
WANTED = torch.randn(5, generator=G, dtype=torch.float64)


def generate(z):
    return (z.flatten(1) @ MATRIX).tanh()


def reward(images):
    return -(images - WANTED).square().sum(1)


def test_one_sample_goes_as_torchs_optimiser_would():
    for clip, regularisation in ((0.1, 0.01), (100.0, 0.5)):
        options = {"rate": 0.3, "clip": clip, "regularisation": regularisation, "iterations": 12}
        z = NOISE[:1].clone().requires_grad_()
        optimiser = torch.optim.SGD([z], lr=0.3, momentum=0.9, nesterov=True)
        rewards = []
        for _ in range(13):
            optimiser.zero_grad()
            d, norm = z.numel(), z.norm()
            loss = -reward(generate(z)).sum() + regularisation * (0.5 * norm**2 - (d - 1) * norm.log())
            rewards.append(reward(generate(z)).item())
            loss.backward()
            torch.nn.utils.clip_grad_norm_([z], clip)
            optimiser.step()
        found = reno(generate, reward, NOISE[:1], **options)
        assert (found.tried[:, 0] - torch.tensor(rewards)).abs().max() < 1e-6  # clip_grad_norm_ adds 1e-6 too
        assert found.rewards[0] == max(found.tried[:, 0]) > rewards[0]


def test_samples_do_not_look_at_one_another_and_the_best_is_what_it_scored():
    found = reno(generate, reward, NOISE, rate=0.5, iterations=10)
    for i in range(4):
        alone = reno(generate, reward, NOISE[i : i + 1], rate=0.5, iterations=10)
        assert (alone.noise[0] - found.noise[i]).abs().max() < 1e-12
    assert torch.equal(found.rewards, found.tried.amax(0))
    assert (reward(generate(found.noise)) - found.rewards).abs().max() < 1e-12
    assert torch.equal(found.images, generate(found.noise)) and not found.images.requires_grad
    assert (found.rewards > found.tried[0]).all()
    still = reno(generate, reward, NOISE, iterations=0)
    assert torch.equal(still.noise, NOISE) and torch.equal(still.images, generate(NOISE))


def test_the_radius_is_likeliest_where_the_norm_of_noise_is():
    z = torch.nn.functional.normalize(NOISE.flatten(1)) * math.sqrt(5)  # d - 1 of d = 6, in every row of the batch
    z.requires_grad_()
    assert torch.autograd.grad(log_radius(z).sum(), z)[0].abs().max() < 1e-14
    longer = (1.1 * z.detach()).requires_grad_()
    assert ((torch.autograd.grad(log_radius(longer).sum(), longer)[0] * longer).sum(1) < -0.1).all()


def test_a_run_of_a_sampler_can_be_what_generates():
    path = VariancePreserving.linear()
    levels, mixture = get_grid("karras", path, 2), Mixture.example(path)
    noise = torch.randn(3, 2, generator=G, dtype=torch.float64)

    def run(z):
        return sample(mixture, get_solver("dpmpp_2m"), levels[0].sigma * z, levels, grad=True)

    def near(images):
        return -(images - 0.5).square().sum(1)

    found = reno(run, near, noise, iterations=8, rate=1.0)
    assert (found.rewards > found.tried[0] + 0.01).all()


def test_the_best_of_several_is_the_best():
    noises = [torch.randn(4, 2, 3, generator=G, dtype=torch.float64) for _ in range(6)]
    found = best_of(generate, reward, noises)
    everything = torch.stack([reward(generate(n)) for n in noises])
    assert torch.equal(found.rewards, everything.amax(0)) and torch.equal(found.tried, everything)
    assert torch.equal(found.noise, torch.stack(noises)[everything.argmax(0), range(4)])


@pytest.mark.parametrize(
    "options", [{"iterations": -1}, {"rate": 0.0}, {"clip": math.nan}, {"momentum": 1.0}, {"regularisation": -1.0}]
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match="ReNO got"):
        reno(generate, reward, NOISE, **options)
    with pytest.raises(ValueError, match="one or more"):
        best_of(generate, reward, [])
