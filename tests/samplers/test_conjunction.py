"""Joined conditions and stages of a run, on a mixture whose branches are known exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch

from samplers import ClassifierFree, Condition, Context, RectifiedFlow, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.guidance.conjunction import Conjunction
from samplers.guidance.perturbed import SkipLayer
from samplers.multi_model.stages import LevelStage, LevelStages, StagedDenoiser, StagedSolver
from samplers.noise import normal, seeded_noise

PATH = RectifiedFlow()
LEVEL = PATH(0.6)
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FIRST, SECOND = Condition(label=torch.tensor([0, 1, 2, 1])), Condition(label=torch.tensor([2, 0, 0, 2]))
WEIGHTS = torch.tensor([[1.0, 0.5, 2.0, 1.0], [0.5, 1.0, -1.0, 0.25]], dtype=torch.float64)


def parts(kind: str = "eps"):
    mixture = Mixture.example(PATH, kind, labelled=True)
    return mixture, *(mixture(X, LEVEL, c, Context()) for c in (FIRST, SECOND, FIRST.null()))


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_each_condition_adds_is_summed(kind, scale):
    """null + scale sum_k w_k (cond_k - null), in every reading (composable diffusion, equation 11, under guidance)."""
    mixture, a, b, null = parts(kind)
    context = Context()
    found = ClassifierFree(Conjunction(mixture, (SECOND,), WEIGHTS), scale)(X, LEVEL, FIRST, context)
    assert context.evaluations == 3 * len(X)
    for name in ("eps", "x0", "score"):
        n, one, two = (getattr(p, name) for p in (null, a, b))
        expected = n + scale * (WEIGHTS[0][:, None] * (one - n) + WEIGHTS[1][:, None] * (two - n))
        torch.testing.assert_close(getattr(found, name), expected, atol=1e-10, rtol=0)


def test_the_scores_of_joined_conditions_add_up():
    """The gradient of log p + sum_k w_k log p(c_k | x), by automatic differentiation of the densities."""
    mixture = Mixture.example(PATH, "flow", labelled=True)
    found = Conjunction(mixture, (SECOND,), WEIGHTS)(X, LEVEL, FIRST, Context())
    null = mixture.score(X, LEVEL)
    expected = null + sum(
        w[:, None] * (mixture.score(X, LEVEL, c) - null) for w, c in zip(WEIGHTS, (FIRST, SECOND), strict=True)
    )
    torch.testing.assert_close(found.score, expected, atol=1e-10, rtol=0)


def test_a_negative_condition_is_what_is_subtracted():
    mixture, a, b, _ = parts()
    negative = Condition(label=torch.tensor([1, 2, 1, 0]))
    refused = mixture(X, LEVEL, negative, Context()).eps
    joined = Conjunction(mixture, (SECOND,), WEIGHTS, negative)
    expected = refused + WEIGHTS[0][:, None] * (a.eps - refused) + WEIGHTS[1][:, None] * (b.eps - refused)
    torch.testing.assert_close(joined(X, LEVEL, FIRST, Context()).eps, expected, atol=1e-10, rtol=0)
    guided = ClassifierFree(joined, 2.0, negative)(X, LEVEL, FIRST, Context())
    torch.testing.assert_close(guided.eps, refused + 2 * (expected - refused), atol=1e-10, rtol=0)


def test_weights_that_sum_to_one_need_no_unconditional_branch():
    mixture, a, b, _ = parts()
    context, weights = Context(), torch.tensor([[0.25] * 4, [0.75] * 4], dtype=torch.float64)
    found = Conjunction(mixture, (SECOND,), weights)(X, LEVEL, FIRST, context)
    assert context.evaluations == 2 * len(X)
    torch.testing.assert_close(found.eps, 0.25 * a.eps + 0.75 * b.eps, atol=1e-12, rtol=0)


def test_the_mean_of_distilled_networks():
    mixture, a, b, _ = parts()
    weights = torch.tensor([[1.0] * 4, [3.0] * 4], dtype=torch.float64)
    found = Conjunction(mixture, (SECOND,), weights, mean=True)(X, LEVEL, FIRST, Context())
    torch.testing.assert_close(found.eps, 0.25 * a.eps + 0.75 * b.eps, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="must sum to more than 0"):
        Conjunction(mixture, (SECOND,), WEIGHTS - 1, mean=True)
    with pytest.raises(ValueError, match="one row of weights"):
        Conjunction(mixture, (SECOND, SECOND), WEIGHTS)


def test_repeated_rows_repeat_the_conditions():
    """As windows of a canvas come: the same pictures several times."""
    mixture, *_ = parts()
    joined = ClassifierFree(Conjunction(mixture, (SECOND,), WEIGHTS), 2.0)
    alone = joined(X, LEVEL, FIRST, Context())
    twice = joined(torch.cat([X, X]), LEVEL, FIRST.cat([FIRST]), Context())
    assert torch.equal(twice.eps, torch.cat([alone.eps, alone.eps]))


@dataclass
class Spy:
    inner: Mixture
    calls: list = field(default_factory=list)
    path = PATH

    def __call__(self, x, level, condition, context):
        self.calls.append((level.t, int(condition.label[0]), context.branch, dict(context.adapters)))
        return self.inner(x, level, condition, context)


def staged(order, grid, solver, spy):
    bounds = tuple(level.logsnr for level in grid[1:-1])
    labels = {0: FIRST, 1: SECOND}
    made = []

    def make(number):
        made.append(number)
        return LevelStage(spy, solver, labels[number], {"x": float(number)})

    stages = LevelStages(bounds, tuple(order), make)
    return StagedDenoiser(stages, spy), StagedSolver(stages, solver), made


def test_each_stage_has_its_condition():
    """A run in stages is a run to the boundary under one condition, and from there on under the other."""
    mixture, grid = Mixture.example(PATH, "flow", labelled=True), get_grid("uniform", PATH, 8)
    spy, solver = Spy(mixture), get_solver("euler")
    denoiser, wrapped, made = staged([0, 0, 0, 1, 1, 1, 1, 1], grid, solver, spy)
    found = sample(denoiser, wrapped, X, grid, FIRST)
    half = sample(mixture, solver, X, grid[:4], FIRST)
    torch.testing.assert_close(found, sample(mixture, solver, half, grid[3:], SECOND), atol=1e-12, rtol=0)
    assert made == [0, 1] and [call[1] for call in spy.calls] == [0] * 3 + [2] * 5
    assert spy.calls[0][2:] == (("stage", 0), {"x": 0.0}) and spy.calls[-1][2:] == (("stage", 1), {"x": 1.0})


@pytest.mark.parametrize("name", ["heun", "dpmpp_2s", "restart", "dpmpp_2m_sde"])
def test_the_level_decides_whatever_the_solver_does(name):
    """Evaluations between levels, at the end of a step and at levels that come back have the condition of their level."""
    grid = get_grid("uniform", PATH, 6)
    spy = Spy(Mixture.example(PATH, "flow", labelled=True))
    denoiser, wrapped, _ = staged([0, 1, 0, 1, 1, 0], grid, get_solver(name), spy)
    noise = seeded_noise([1, 2, 3, 4], X)
    sample(denoiser, wrapped, normal([1, 2, 3, 4], (2,), "x").double(), grid, FIRST, noise=noise)
    for t, label, *_ in spy.calls:
        part = max(i for i in range(6) if t <= grid[i].t + 1e-9)
        assert label == {0: 0, 1: 2}[[0, 1, 0, 1, 1, 0][part]], (t, part)
    assert len(spy.calls) >= 6


def test_levels_per_sample_are_refused():
    spy = Spy(Mixture.example(PATH, labelled=True))
    denoiser, *_ = staged([0, 1], get_grid("uniform", PATH, 2), get_solver("euler"), spy)
    with pytest.raises(ValueError, match="one noise level at a time"):
        denoiser(X, PATH(torch.full((4,), 0.5)), FIRST, Context())


def test_perturbed_guidance_goes_around_joined_conditions():
    """Its evaluation is of the conditional branch, with the joined conditions in it."""
    mixture, *_ = parts()
    joined = Conjunction(mixture, (SECOND,), WEIGHTS)
    with pytest.raises(ValueError, match="'block' hook"):  # it got as far as asking the network
        SkipLayer(ClassifierFree(joined, 2.0), 3.0, base=joined)(X, LEVEL, FIRST, Context())
