"""Nested diffusion: finished images early, the data's distribution at the end, and an honest count."""

from itertools import pairwise

import pytest
import torch

from samplers import (
    Context,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.analytic import Gaussian, Mixture
from samplers.anytime import anytime, remaining
from samplers.noise import normal
from tests.samplers.references import Replay

VE, RF = VarianceExploding(), RectifiedFlow()
MEAN, STD = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
COUNT = 10000


def noise_like(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(states):
    *_, state = states
    return state


def in_standard_errors(x):
    """Largest distance of mean and variance from the data's, in standard errors."""
    mean = (x.mean(0) - MEAN).abs() / (STD / COUNT**0.5)
    variance = (x.var(0) / STD**2 - 1).abs() / (2 / COUNT) ** 0.5
    return max(mean.max().item(), variance.max().item())


@pytest.mark.parametrize(
    ("solver", "transition"),
    [(Multistep(2), "renoise"), (Multistep(2, eta=1.0), "renoise"), (Multistep(2, eta=1.0), "posterior")],
    ids=["ODE renoise", "SDE renoise", "SDE posterior"],
)
def test_the_full_run_has_the_datas_distribution(solver, transition):
    levels = [RF(1.0), *(RF.at_logsnr(v) for v in (-2.0, -1.0, 0.0, 1.0)), RF(0.0)]
    z = noise_like(COUNT, 2)
    states = anytime(
        Gaussian(RF, MEAN, STD, "flow"), solver, z, levels, inner_steps=40, transition=transition, noise=Replay(z, 3)
    )
    assert in_standard_errors(last(states).x) < 4


def test_posterior_after_a_deterministic_inner_run_is_too_wide():
    """The documented limit of the published transition: a deterministic image is no draw given x_s."""
    levels = [RF(1.0), *(RF.at_logsnr(v) for v in (-2.0, -1.0, 0.0, 1.0)), RF(0.0)]
    z = noise_like(COUNT, 2)
    states = anytime(
        Gaussian(RF, MEAN, STD, "flow"), Multistep(2), z, levels, inner_steps=40, transition="posterior", noise=Replay(z, 3)
    )
    x = last(states).x
    assert (x.var(0) > STD**2 * (1 + 4 * (2 / COUNT) ** 0.5)).all()


def test_an_early_image_is_finished():
    """After the first outer steps the variance is near the data's, where the plain x0 prediction has next to none of it."""
    gaussian, z = Gaussian(VE, MEAN, STD), 80 * noise_like(COUNT, 2)
    levels, seen = get_grid("karras", VE, 8), []
    plain = []
    sample(gaussian, Multistep(1), z, levels, on_step=lambda state: plain.append(state.prediction.x0))
    for state in anytime(gaussian, get_solver("dpmpp_2m"), z, levels, inner_steps=16, noise=Replay(z, 3)):
        seen.append(state.x)
        if state.step == 3:
            break
    for image, mean in zip(seen, plain, strict=False):
        wrong, blurred = ((v.var(0) / STD**2 - 1).abs().max().item() for v in (image, mean))
        assert wrong < 0.2 and blurred > 0.8
        assert (image.mean(0) - MEAN).abs().max() < 0.1


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize(("name", "inner", "cost"), [("euler", 1, 1), ("dpmpp_2m", 4, 4), ("heun", 5, 9)])
def test_every_outer_step_hands_over_an_image_and_counts(steps, name, inner, cost):
    """N outer steps give N images, the last included, at clean data; evaluations are the sum of the inner runs'."""
    z, context = 80 * noise_like(5, 2), Context()
    levels, noise = get_grid("karras", VE, steps, sigma_min=0.5), seeded_noise(range(5), z)
    run = anytime(Mixture.example(VE), get_solver(name), z, levels, inner_steps=inner, noise=noise, context=context)
    states = list(run)
    assert [state.step for state in states] == list(range(1, steps + 1))
    assert all(state.level.sigma == 0 for state in states)
    assert [state.evaluations for state in states] == [cost * (i + 1) for i in range(steps)]
    assert context.evaluations == 5 * cost * steps


def test_one_inner_step_is_consistency_sampling():
    """An inner run of one step is the x0 prediction, and re-noising it the consistency sampler."""
    z, levels = noise_like(5, 2), [*(RF.at_logsnr(v) for v in (-3.0, -1.0, 0.5)), RF(0.0)]
    mixture = Mixture.example(RF)
    ours = last(anytime(mixture, Multistep(1), z, levels, inner_steps=1, noise=Replay(z, 3))).x
    assert (ours - sample(mixture, get_solver("consistency"), z, levels, noise=Replay(z, 3))).abs().max() < 1e-12


def test_one_inner_step_with_posterior_is_euler_ancestral():
    z, levels = noise_like(5, 2), [*(RF.at_logsnr(v) for v in (-3.0, -1.0, 0.5)), RF(0.0)]
    mixture = Mixture.example(RF)
    states = anytime(mixture, Multistep(1), z, levels, inner_steps=1, transition="posterior", noise=Replay(z, 3))
    assert (last(states).x - sample(mixture, get_solver("euler_a"), z, levels, noise=Replay(z, 3))).abs().max() < 1e-12


@pytest.mark.parametrize(
    "path", [VE, RF, VariancePreserving.linear(), VariancePreserving.scaled_linear(zero_terminal_snr=True)], ids=str
)
def test_inner_grids(path):
    """From any level down to clean data, starting exactly there, pure noise and the cleanest level included."""
    for s in (path(path.t_noise), path.at_logsnr(0.0), path.at_logsnr(4.0), path.at_logsnr(20.0)):
        for steps in (1, 2, 7):
            levels = remaining(path, s, steps)
            assert levels[0] is s and levels[-1].sigma == 0 and len(levels) <= steps + 1
            assert all(a.logsnr < b.logsnr for a, b in pairwise(levels))
    assert len(remaining(path, path.at_logsnr(0.0), 7)) == 8


def test_images_do_not_depend_on_their_batch():
    levels = get_grid("karras", VE, 4)

    def run(seeds):
        x = 80 * normal(seeds, (2,), "start", dtype=torch.float64)
        solver = get_solver("dpmpp_2m_sde")
        return last(anytime(Mixture.example(VE), solver, x, levels, noise=seeded_noise(seeds, x))).x

    assert torch.equal(run([5, 6, 7])[1], run([6])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transition": "ddpm"}, "choose one of renoise, posterior"),
        ({"inner_steps": 0}, "at least 1"),
        ({"levels": [VE(1.0)]}, "at least two"),
        ({"levels": [VE(1.0), VE(2.0)]}, "fall in noise"),
    ],
)
def test_errors_are_sentences(options, message):
    z = noise_like(2, 2)
    options = {"levels": [VE(2.0), VE(0.0)], **options}
    with pytest.raises(ValueError, match=message):
        next(anytime(Mixture.example(VE), Multistep(1), z, noise=Replay(z), **options))
