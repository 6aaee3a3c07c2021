"""Restart: evaluations, marginals, and the error it takes back."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samplers import (
    Condition,
    Context,
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
    trajectory,
)
from samplers.analytic import Gaussian, Mixture
from samplers.noise import fork_noise, normal
from samplers.solvers.restart import Restart
from tests.samplers.references import Replay

VE = VarianceExploding(0.01, 50.0)
MEAN, STD = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)


def noise_like(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("inner", [Multistep(1), Heun(), Multistep(3, corrector_order=4)], ids=str)
def test_no_times_is_the_plain_run(inner):
    levels, x = get_grid("karras", VE, 9), 50 * noise_like(4, 2)
    mixture = Mixture.example(VE)
    assert torch.equal(sample(mixture, Restart(inner, times=0), x, levels), sample(mixture, inner, x, levels))


@pytest.mark.parametrize(("steps", "times"), [(1, 1), (5, 2), (9, 3)])
@pytest.mark.parametrize(("inner", "cost"), [(Multistep(2), 1), (Heun(), 2)], ids=["2M", "Heun"])
def test_evaluations(inner, cost, steps, times):
    """A run of N steps takes times * steps steps more; those of Heun two evaluations each."""
    levels, x, context = get_grid("karras", VE, 9), 50 * noise_like(4, 2), Context()
    solver = Restart(inner, 0.1, 2.0, steps, times)
    states = list(trajectory(Mixture.example(VE), solver, x, levels, noise=seeded_noise(range(4), x), context=context))
    assert context.evaluations == 4 * (cost * (9 - 1) + 1 + cost * steps * times)
    jumps = [b.evaluations - a.evaluations for a, b in pairwise(states)]
    at = jumps.index(max(jumps)) + 1  # all of it in the one step that reaches sigma_min
    assert states[at].level.sigma <= 0.1 < states[at - 1].level.sigma
    assert [state.step for state in states] == list(range(1, 10))


def test_it_is_algorithm_1_of_the_paper():
    """Written out: down to the first level at or below sigma_min, then noise up to sigma_max, down again, and on."""
    levels, x = get_grid("karras", VE, 9), 50 * noise_like(4, 2)
    mixture, source = Mixture.example(VE), Replay(x, 3)
    split = next(i for i, level in enumerate(levels) if level.sigma <= 0.1)
    t = levels[split].sigma
    y = sample(mixture, Heun(), x, levels[: split + 1])
    for _ in range(2):
        y = y + math.sqrt(2.0**2 - t**2) * source()
        back = [VE((2 ** (1 / 7) + i / 5 * (t ** (1 / 7) - 2 ** (1 / 7))) ** 7) for i in range(6)]
        y = sample(mixture, Heun(), y, back)
    y = sample(mixture, Heun(), y, levels[split:])
    ours = sample(mixture, Restart(Heun(), 0.1, 2.0, 5, 2), x, levels, noise=Replay(x, 3))
    assert (ours - y).abs().max() < 1e-9


def test_it_contracts_errors():
    """From a start with the wrong mean and spread every return brings the distribution nearer to the data's."""
    gaussian, count = Gaussian(VE, MEAN, STD), 4000
    levels = [VE(v) for v in (3.0, 1.5, 0.8, 0.3, 0.1, 0.02)]
    z = noise_like(count, 2)
    wrong = gaussian.sample(count, levels[0], torch.Generator().manual_seed(1)) + 4.0

    def bias(times):
        solver = Restart(Heun(), 0.1, 3.0, 12, times)
        x = sample(gaussian, solver, wrong, levels, noise=seeded_noise_fast(z))
        return (x.mean(0) - gaussian.marginal(levels[-1])[0]).abs().max().item()

    biases = [bias(times) for times in (0, 1, 2, 4)]
    # an ODE from sigma_max shrinks an offset by sqrt(std^2 + sigma_min^2) / sqrt(std^2 + sigma_max^2): at most 0.45 here
    assert biases[1] < 0.5 * biases[0] and biases[2] < 0.5 * biases[1] and biases[3] < 0.5 * biases[2]
    assert biases[0] > 1.5 and biases[3] < 0.15


def seeded_noise_fast(like):
    """Noise that depends on both clocks, drawn for the whole batch at once."""

    def draw(s, t):
        generator = torch.Generator().manual_seed(hash((float(s.t), float(t.t))) % (1 << 60))
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    return draw


@pytest.mark.parametrize("path", [VE, VariancePreserving.linear(), RectifiedFlow()], ids=["VE", "VP", "RF"])
def test_marginals(path):
    """A right start stays right: mean and variance within four standard errors after two returns."""
    gaussian, count = Gaussian(path, MEAN, STD), 20000
    levels = [path.at_logsnr(-2 + 5 * i / 24) for i in range(25)]
    start = gaussian.sample(count, levels[0], torch.Generator().manual_seed(1))
    x = sample(gaussian, Restart(Heun(), 0.2, 1.5, 12, 2), start, levels, noise=Replay(start, 7))
    mean, variance = gaussian.marginal(levels[-1])
    assert ((x.mean(0) - mean).abs() < 4 * (variance / count).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / count) ** 0.5).all()


@pytest.mark.parametrize("make", [seeded_noise, brownian_noise])
def test_every_return_has_its_own_noise(make):
    """Two returns with the noise of one would be one: sources renewed by different keys are independent of each other."""
    x = torch.zeros(2, 4000, dtype=torch.float64)
    source, (s, t) = make([1, 2], x), (VE(0.1), VE(2.0))
    draws = [source(s, t), fork_noise(source, "restart", 0)(s, t), fork_noise(source, "restart", 1)(s, t)]
    draws.append(fork_noise(fork_noise(source, "restart", 0), "restart", 1)(s, t))
    correlation = torch.corrcoef(torch.stack([d.flatten() for d in draws]))
    assert (correlation - torch.eye(4)).abs().max() < 4 / 8000**0.5
    assert torch.equal(fork_noise(source, "restart", 0)(s, t), draws[1])


def test_no_two_draws_are_the_same():
    """Noise is a function of the levels it is asked for: every return, on its way up and down, asks for others."""
    levels, x, asked = get_grid("karras", VE, 9), 50 * noise_like(4, 2), []

    def source(s, t):
        asked.append((s.t, t.t))
        return torch.zeros_like(x)

    sample(Mixture.example(VE), Restart(Multistep(1, eta=1.0), 0.1, 2.0, 3, 2), x, levels, noise=source)
    assert len(set(asked)) == len(asked) == 8 + 2 * (1 + 3)


def test_several_intervals_nest():
    levels, x, context = get_grid("karras", VE, 9), 50 * noise_like(4, 2), Context()
    solver = Restart(Restart(Multistep(2), 0.05, 0.3, 3, 2), 1.0, 10.0, 4, 1)
    y = sample(Mixture.example(VE), solver, x, levels, noise=seeded_noise(range(4), x), context=context)
    assert torch.isfinite(y).all() and context.evaluations == 4 * (9 + 3 * 2 + 4)


def test_a_multistep_inner_solver_goes_on_from_the_last_return():
    """After a return the history holds its predictions, so the next step keeps its order (and its corrector)."""
    levels, x = [VE(v) for v in (8.0, 4.0, 2.0, 1.0, 0.5)], 8 * noise_like(4, 2)
    solver = Restart(Multistep(2, corrector_order=3), 2.0, 6.0, 4, 1)
    states = list(trajectory(Mixture.example(VE), solver, x, levels, noise=seeded_noise(range(4), x)))
    history = states[1].history
    assert [e.step for e in history] == [-1, 0, 1] and history[-1].level.sigma < 6.0
    fresh = replace(states[1], history=())
    args = (Mixture.example(VE), levels[2], levels[3], Condition(), Context(step=2, steps=4))
    there, alone = (solver.step(args[0], state, *args[1:], seeded_noise(range(4), x)).x for state in (states[1], fresh))
    assert not torch.allclose(there, alone, atol=1e-4)


@pytest.mark.parametrize("kind", ["x0", "flow"])
def test_from_pure_noise_to_clean_data(kind):
    """Also where the last level is clean data and sigma_min is jumped over on the way there."""
    path, x = RectifiedFlow(), noise_like(6, 2)
    mixture = Mixture.example(path, kind)
    for steps in (1, 2, 20):
        levels = get_grid("uniform", path, steps)
        y = sample(mixture, Restart(Heun(), 0.1, 2.0, 9, 2), x, levels, noise=seeded_noise(range(6), x))
        assert torch.isfinite(y).all()
    assert mixture.log_density(y, path(0.0)).min() > -12


def test_images_do_not_depend_on_their_batch():
    path, levels = VE, get_grid("karras", VE, 8)

    def run(seeds):
        x = 50 * normal(seeds, (2,), "start", dtype=torch.float64)
        return sample(Mixture.example(path), get_solver("Restart"), x, levels, noise=seeded_noise(seeds, x))

    assert torch.equal(run([5, 6, 7])[1], run([6])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min < sigma_max"),
        ({"steps": 0}, "steps=0"),
        ({"times": -1}, "times=-1"),
        ({"times": True}, "whole number"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Restart(**options)


def test_errors_are_sentences():
    levels, x = get_grid("karras", VE, 6), 50 * noise_like(2, 2)
    with pytest.raises(ValueError, match="pass noise="):
        sample(Mixture.example(VE), Restart(), x, levels)
    with pytest.raises(ValueError, match="ends at 50"):
        sample(Mixture.example(VE), Restart(sigma_max=60.0), x, levels, noise=Replay(x))
