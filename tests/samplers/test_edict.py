"""EDICT: its equations, its exact inverse, its order, and what a run may do to its two sequences."""

import math
from itertools import pairwise

import pytest
import torch

from samplers import (
    ClassifierFree,
    Condition,
    Context,
    Multistep,
    RectifiedFlow,
    State,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
    trajectory,
)
from samplers.analytic import Mixture, reference_ode
from samplers.editing import EDICT, invert_edict, invert_exact

VP, RF = VariancePreserving.linear(), RectifiedFlow()
PATHS = {"VP": VP, "RF": RF}
X = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def even(path, steps, low=-2.0, high=2.0):
    return [path.at_logsnr(low + (high - low) * i / steps) for i in range(steps + 1)]


def by_hand(denoiser, x, y, levels, p, alternate):
    """Equations 14 and 15 with cumulative alphas, on a variance-preserving path."""
    for i, (s, t) in enumerate(pairwise(levels)):
        a = math.sqrt(t.alpha**2 / s.alpha**2)
        b = math.sqrt(1 - t.alpha**2) - math.sqrt(t.alpha**2 * (1 - s.alpha**2) / s.alpha**2)
        pair = [y, x] if alternate and i % 2 else [x, y]
        pair[0] = a * pair[0] + b * denoiser(pair[1], s, Condition(), Context()).eps
        pair[1] = a * pair[1] + b * denoiser(pair[0], s, Condition(), Context()).eps
        pair[0] = p * pair[0] + (1 - p) * pair[1]
        pair[1] = p * pair[1] + (1 - p) * pair[0]
        x, y = pair[::-1] if alternate and i % 2 else pair
    return x, y


@pytest.mark.parametrize("alternate", [True, False])
def test_the_published_equations(alternate):
    mixture, levels = Mixture.example(VP, "eps"), even(VP, 5)
    twin = X + 0.1
    expected = by_hand(mixture, X, twin, levels, 0.9, alternate)
    *_, last = trajectory(mixture, EDICT(0.9, alternate, twin, 0.0), X, levels)
    for ours, theirs in zip(last.carry, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-12
    assert last.x is last.carry[0] and (last.carry[0] - last.carry[1]).abs().max() > 1e-4


@pytest.mark.parametrize("alternate", [True, False])
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("end", [2.0, math.inf], ids=["noisy", "clean"])
def test_it_is_undone_exactly(name, alternate, end):
    """Both ways round, where fixed points of DDIM do not even settle."""
    path = PATHS[name]
    mixture, levels = Mixture.example(path, "eps"), [*even(path, 6, -4.0, 1.0), path.at_logsnr(end)]
    x, twin = invert_edict(mixture, X, levels, alternate=alternate)
    solver = EDICT(alternate=alternate, twin=twin)
    assert (sample(mixture, solver, x, levels) - X).abs().max() < 1e-11
    *_, last = trajectory(mixture, EDICT(alternate=alternate), X, levels)
    for back in invert_edict(mixture, last.x, levels, alternate=alternate, twin=last.carry[1]):
        assert (back - X).abs().max() < 1e-11
    with pytest.raises(ValueError, match="did not settle"):
        invert_exact(mixture, X, [path.at_logsnr(-4.0), path.at_logsnr(1.0)])


def test_two_evaluations_a_step_both_ways():
    mixture, levels, context = Mixture.example(VP, "eps"), even(VP, 4), Context()
    invert_edict(mixture, X, levels, context=context)
    assert context.evaluations == 2 * 4 * len(X)
    context = Context()
    sample(mixture, EDICT(), X, levels, context=context)
    assert context.evaluations == 2 * 4 * len(X)


@pytest.mark.parametrize("name", PATHS)
def test_first_order(name):
    path = PATHS[name]
    mixture = Mixture.example(path)
    exact = reference_ode(mixture, X, *even(path, 1), steps=200)
    errors = [(sample(mixture, EDICT(), X, even(path, steps)) - exact).square().mean().sqrt() for steps in (64, 128)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.2


def test_without_mixing_and_from_pure_noise():
    """p = 1 leaves both alone with one another's eps; at pure noise both take the step of Euler."""
    levels = get_grid("uniform", RF, 3)
    mixture = Mixture.example(RF, "flow")
    first = next(iter(trajectory(mixture, EDICT(), X, levels)))
    euler = next(iter(trajectory(mixture, Multistep(1), X, levels)))
    assert torch.allclose(first.x, euler.x, rtol=0, atol=1e-14) and first.carry[1] is first.x
    assert torch.isfinite(sample(mixture, EDICT(), X, levels)).all()
    with pytest.raises(ValueError, match="Pure noise"):
        invert_edict(mixture, X, levels)
    levels = even(RF, 2)
    x, twin = invert_edict(mixture, X, levels, mix=1.0)
    assert (sample(mixture, EDICT(1.0, twin=twin), x, levels) - X).abs().max() < 1e-12


def test_the_second_sequence_moves_along():
    """Where something else adds d to x, both have it."""
    mixture, levels = Mixture.example(VP), even(VP, 4)
    state = list(trajectory(mixture, EDICT(), X, levels))[1]
    x, y = state.carry
    moved = State(x + 0.3, levels[2], 2, carry=(x, y))
    shifted = x + 0.3
    both = State(shifted, levels[2], 2, carry=(shifted, y + 0.3))
    a, b = (EDICT().step(mixture, one, levels[2], levels[3], Condition(), Context(step=2)) for one in (moved, both))
    assert torch.allclose(a.x, b.x, rtol=0, atol=1e-14) and torch.allclose(a.carry[1], b.carry[1], rtol=0, atol=1e-14)


def test_settings_are_checked():
    assert get_solver("edict", mix=0.9) == EDICT(0.9)
    for mix in (0.0, 1.1, -1.0, math.nan):
        with pytest.raises(ValueError, match="above 0, up to 1"):
            EDICT(mix)
    with pytest.raises(ValueError, match="same shape"):
        sample(Mixture.example(VP), EDICT(twin=X[:1]), X, even(VP, 2))


@pytest.mark.parametrize("grid", ["uniform", "beta", "karras", "leading", "normal"])
@pytest.mark.parametrize("path", [VP, VariancePreserving.scaled_linear(), RF], ids=["DDPM", "SD", "flow"])
@pytest.mark.parametrize("steps", [20, 50])
def test_few_steps_are_bounded(path, grid, steps):
    """Under guidance of 5 the published p is hundreds of times worse than Euler in 20 steps; longer steps mix more."""
    if grid == "leading" and path == RF:
        pytest.skip("a flow has no table of timesteps")
    levels = get_grid(grid, path, steps)
    guided = ClassifierFree(Mixture.example(path, labelled=True), 5.0)
    labels = Condition(label=torch.arange(len(X)) % 3)
    x = sample(guided, get_solver("edict"), levels[0].sigma * X, levels, labels)
    euler = sample(guided, get_solver("euler"), levels[0].sigma * X, levels, labels)
    assert x.abs().max() < 3 * euler.abs().max()


def test_one_damping_in_any_number_of_steps():
    s, t = VP.at_logsnr(-4.0), VP.at_logsnr(4.0)
    for steps in (5, 50, 500):
        levels = even(VP, steps, -4.0, 4.0)
        held = math.prod(EDICT().mixing(a, b) for a, b in pairwise(levels))
        assert held == pytest.approx(EDICT().mixing(s, t)) == pytest.approx(0.93 ** (8 / 0.1))
    assert EDICT(mix_length=0.0).mixing(s, t) == EDICT().mixing(s, VP(0.0)) == 0.93
    with pytest.raises(ValueError, match="give a length in log-SNR"):
        EDICT(mix_length=-1.0)
