"""Explicit state: steps are pure, repeatable, resumable, and evaluate exactly as often as they say."""

import math
from dataclasses import replace

import pytest
import torch

from samplers import (
    SOLVERS,
    Condition,
    Context,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
    trajectory,
)
from samplers.analytic import Gaussian, Mixture

PATH = RectifiedFlow()
LEVELS = get_grid("karras", PATH, 8)
X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = seeded_noise([1, 2, 3], X)
MIXTURE = Mixture.example(PATH)


def equal(a, b):
    assert torch.equal(a.x, b.x)
    assert [(e.step, e.level) for e in a.history] == [(e.step, e.level) for e in b.history]
    assert all(torch.equal(p.x0, q.x0) for p, q in zip(a.history, b.history, strict=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_is_pure(name):
    """The same state stepped twice gives the same state, and is itself unchanged."""
    solver = get_solver(name)
    state = list(trajectory(MIXTURE, solver, X, LEVELS, noise=NOISE))[4]
    before = state.x.clone()
    first, second = (solver.step(MIXTURE, state, LEVELS[5], LEVELS[6], Condition(), Context(steps=8), NOISE) for _ in range(2))
    equal(first, second)
    assert torch.equal(state.x, before)


@pytest.mark.parametrize("name", [name for name, info in SOLVERS.items() if not info.adaptive])
def test_evaluations_are_counted(name):
    info, context = SOLVERS[name], Context()
    states = list(trajectory(MIXTURE, get_solver(name), X, LEVELS, noise=NOISE, context=context))
    expected = info.evaluations * (len(LEVELS) - 1) - (info.evaluations - 1) + info.extra  # the step to clean data takes one
    assert context.evaluations == expected * len(X)
    assert states[-1].evaluations == expected
    assert len(states) == 8 and states[-1].step == 8


@pytest.mark.parametrize("name", SOLVERS)
def test_a_state_resumes(name):
    """Stopping after three steps and going on from the state gives the run that was not stopped."""
    solver = get_solver(name)
    whole = list(trajectory(MIXTURE, solver, X, LEVELS, noise=NOISE))
    state = whole[2]
    for step in range(3, 8):
        context = Context(step=step, steps=8)
        state = solver.step(MIXTURE, state, LEVELS[step], LEVELS[step + 1], Condition(), context, NOISE)
        state = replace(state, step=step + 1, level=LEVELS[step + 1])
    assert torch.equal(state.x, whole[-1].x)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_prediction_handed_over_is_used(name):
    """A wrapper that has x0 for this very x and level saves the evaluation; an old or foreign one is ignored."""
    solver = get_solver(name)
    if SOLVERS[name].evaluations > 1 or SOLVERS[name].extra:
        solver = get_solver("euler")
    state = replace(solver.init(X), level=LEVELS[0])
    plain = solver.step(MIXTURE, state, LEVELS[0], LEVELS[1], Condition(), Context(), NOISE)

    context = Context()
    prediction = MIXTURE(X, LEVELS[0], Condition(), context)
    handed = solver.step(MIXTURE, replace(state, prediction=prediction), LEVELS[0], LEVELS[1], Condition(), context, NOISE)
    assert torch.equal(handed.x, plain.x) and context.evaluations == len(X)

    changed = replace(state, prediction=prediction.with_x0(prediction.x0 + 1))
    moved = solver.step(MIXTURE, changed, LEVELS[0], LEVELS[1], Condition(), Context(), NOISE)
    assert not torch.allclose(moved.x, plain.x)  # it is what the step uses

    for foreign in (replace(prediction, x=X + 0), replace(prediction, level=LEVELS[1])):
        context = Context()
        again = solver.step(MIXTURE, replace(state, prediction=foreign), LEVELS[0], LEVELS[1], Condition(), context, NOISE)
        assert context.evaluations == len(X) and torch.equal(again.x, plain.x)


@pytest.mark.parametrize("solver", [Multistep(3), Multistep(3, corrector_order=4)], ids=str)
def test_recurrence_keeps_one_entry_per_step(solver):
    """A step run three times over, from re-noised states, leaves one prediction in the history: the last."""
    states = list(trajectory(MIXTURE, solver, X, LEVELS))
    state = before = states[3]
    for k in range(3):
        again = replace(state, x=before.x + 0.1 * k, step=4, level=LEVELS[4])
        state = solver.step(MIXTURE, again, LEVELS[4], LEVELS[5], Condition(), Context(steps=8))
        steps = [e.step for e in state.history]
        assert steps == sorted(set(steps)) and steps[-1] == 4
    assert torch.allclose(state.history[-1].x0, MIXTURE(before.x + 0.2, LEVELS[4], Condition(), Context()).x0)


def test_a_repeated_step_is_not_corrected():
    """The corrector improves the predictor's output; a state that was re-noised since is not one."""
    solver = Multistep(2, corrector_order=3)
    states = list(trajectory(MIXTURE, solver, X, LEVELS))
    once = solver.step(MIXTURE, states[3], LEVELS[4], LEVELS[5], Condition(), Context())
    again = solver.step(MIXTURE, replace(once, x=states[3].x), LEVELS[4], LEVELS[5], Condition(), Context())
    plain = Multistep(2).step(MIXTURE, states[3], LEVELS[4], LEVELS[5], Condition(), Context())
    assert torch.allclose(again.x, plain.x, atol=1e-14)
    assert not torch.allclose(once.x, plain.x, atol=1e-8)


def test_predictions_from_cleaner_levels_are_not_extrapolated_from():
    """After a jump back to a noisier level only the new prediction counts."""
    solver = Multistep(3)
    states = list(trajectory(MIXTURE, solver, X, LEVELS))
    jumped = replace(states[4], x=X, level=LEVELS[0])
    fresh = replace(solver.init(X), level=LEVELS[0], step=5)
    a, b = (solver.step(MIXTURE, s, LEVELS[0], LEVELS[1], Condition(), Context()) for s in (jumped, fresh))
    assert torch.equal(a.x, b.x)


def test_a_run_needs_two_levels():
    with pytest.raises(ValueError, match="at least two"):
        sample(MIXTURE, get_solver("euler"), X, LEVELS[:1])


def test_gradients_flow_through_a_run():
    """Reward optimisation differentiates the result by the start; the finite difference agrees."""
    x = X.clone().requires_grad_()
    sample(MIXTURE, get_solver("unipc"), x, LEVELS, grad=True).sum().backward()
    bump = torch.zeros_like(X)
    bump[1, 0] = 1e-6
    difference = sum(sign * sample(MIXTURE, get_solver("unipc"), X + sign * bump, LEVELS).sum() for sign in (1, -1)) / 2e-6
    assert abs(x.grad[1, 0] - difference) < 1e-6


def test_a_run_builds_no_graph_unless_it_is_asked_to():
    x = X.clone().requires_grad_()
    assert not sample(MIXTURE, get_solver("unipc"), x, LEVELS).requires_grad
    assert not any(state.x.requires_grad for state in trajectory(MIXTURE, get_solver("unipc"), x, LEVELS))
    with torch.no_grad():
        assert not sample(MIXTURE, get_solver("unipc"), x, LEVELS, grad=True).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_x_is_kept(dtype):
    x = X.to(dtype)
    mixture = replace(MIXTURE, means=MIXTURE.means.to(dtype), stds=MIXTURE.stds.to(dtype), weights=MIXTURE.weights.to(dtype))
    for name in SOLVERS:
        assert sample(mixture, get_solver(name), x, LEVELS, noise=seeded_noise([1, 2, 3], x)).dtype == dtype


def test_noise_beyond_float16_is_a_sentence():
    """At the start by the level, at the end by the numbers; bfloat16 and float32 have the range."""
    path = VarianceExploding(0.002, 20000.0)
    levels, gaussian = get_grid("karras", path, 4), Gaussian(path, torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="noise of sigma 20000 goes beyond: use bfloat16 or float32"):
        sample(gaussian, get_solver("euler"), torch.ones(1, 2).half(), levels)
    assert sample(gaussian, get_solver("euler"), torch.ones(1, 2).bfloat16(), levels).isfinite().all()

    def broken(x, level, condition, context):
        return replace(MIXTURE(x.double(), level, condition, context), x=x, raw=torch.full_like(x, math.inf))

    broken.path = PATH
    with pytest.raises(ValueError, match="left the range of float16"):
        sample(broken, get_solver("euler"), torch.ones(1, 2).half(), LEVELS)
