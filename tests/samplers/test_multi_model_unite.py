"""Several models for one picture: united by weights, or by learned maps; on different paths."""

import re
from dataclasses import replace

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, Trigonometric, VarianceExploding, VariancePreserving
from samplers.analytic import Gaussian
from samplers.canvas.sync_tweedies import CanonicalDenoiser, SyncTweedies, grid_index, index_view
from samplers.guidance import ClassifierFree
from samplers.multi_model.collaborative_diffusion import CollaborativeDiffusion, Collaborator
from samplers.multi_model.path_adapter import PathAdapter, adapt_path
from samplers.multi_model.regions import Region, Regions
from samplers.multi_model.unite_and_conquer import Member, UniteAndConquer
from tests.samplers.toy_models import SOLVERS, Toy, far, prompt, rand, run

X = rand(2, 3, 4, 5)
FLOW, VP = RectifiedFlow(), VariancePreserving.linear()
LEVEL = FLOW(0.6)
NONE = prompt(0, 2).null()


def members(**changes):
    """Two networks with other weights, conditions, scales and reliabilities."""
    a = Member(Toy(seed=1), prompt(1), scale=2.0, reliability=0.7)
    b = Member(Toy(seed=2, **changes), prompt(2), scale=1.5, reliability=0.3)
    return a, b


@pytest.mark.parametrize("solver", SOLVERS)
def test_equal_models_are_classifier_free_guidance(solver):
    same = tuple(Member(Toy(), None, scale, trust) for scale, trust in ((1.0, 0.2), (0.5, 0.5), (2.0, 0.3)))
    expected = run(ClassifierFree(Toy(), 3.5), X, solver, condition=prompt(1, 2))
    assert far(run(UniteAndConquer(same), X, solver, condition=prompt(1, 2)), expected) < 1e-11


@pytest.mark.parametrize("kind", ["flow", "eps", "x0", "v"])
def test_the_formula_for_models_that_predict_different_things(kind):
    a, b = members(kind=kind)
    said = UniteAndConquer((a, b))(X, LEVEL, Condition(), Context())

    def eps(member, condition):
        return replace(member.denoiser, kind="eps")(X, LEVEL, condition, Context()).eps

    cond = 2.0 * eps(a, prompt(1, 2)) + 1.5 * eps(b, prompt(2, 2))
    away = (3.5 - 1) * (0.7 * eps(a, NONE) + 0.3 * eps(b, NONE))
    assert far(said.eps, cond - away) < 1e-12
    assert far(UniteAndConquer((b, a))(X, LEVEL, Condition(), Context()).eps, said.eps) < 1e-12


def test_nothing_is_evaluated_for_nothing_and_adapters_are_each_ones_own():
    a, b = members()
    cases = (((2.0, 1.5), (0.7, 0.3), 8), ((0.4, 0.6), (0.5, 0.5), 4), ((2.0, 1.5), (1.0, 0.0), 6), ((0.0, 3.0), (1.0, 0.0), 4))
    for scales, trusts, rows in cases:
        one = tuple(replace(m, scale=s, reliability=t) for m, s, t in zip((a, b), scales, trusts, strict=True))
        context = Context()
        UniteAndConquer(one)(X, LEVEL, Condition(), context)
        assert context.evaluations == rows
    shifted = replace(a, adapters={"shift": 0.4}, reliability=1.0, scale=1.0)
    said = UniteAndConquer((shifted,))(X, LEVEL, Condition(), Context(adapters={"shift": 9.0}))
    assert far(said.raw, Toy(seed=1)(X, LEVEL, prompt(1, 2), Context(adapters={"shift": 0.4})).raw) < 1e-14
    negative = replace(a, negative=prompt(5, 2), reliability=1.0)
    said = UniteAndConquer((negative,))(X, LEVEL, Condition(), Context())
    expected = ClassifierFree(Toy(seed=1), 2.0, prompt(5, 2))(X, LEVEL, prompt(1, 2), Context())
    assert far(said.raw, expected.raw) < 1e-13


@pytest.mark.parametrize("other", [VP, VarianceExploding(sigma_max=200.0), Trigonometric()], ids=["VP", "VE", "TrigFlow"])
@pytest.mark.parametrize("kind", ["eps", "x0", "flow"])
def test_a_model_of_another_path_says_the_same(other, kind):
    """An exact denoiser of the same data on either path."""
    mean, std = rand(3, 4, 5, seed=3), 0.5 + rand(3, 4, 5, seed=4).abs()
    theirs, own = Gaussian(other, mean, std, kind), Gaussian(FLOW, mean, std)
    for t in (0.05, 0.4, 0.9, 0.99):
        level = FLOW(t)
        said, expected = (d(X, level, Condition(), Context()) for d in (PathAdapter(theirs, FLOW), own))
        assert far(said.x0, expected.x0) < 1e-10 and far(said.eps, expected.eps) < 1e-10
    by_row = FLOW(torch.tensor([0.2, 0.7], dtype=torch.float64))
    assert (
        far(PathAdapter(theirs, FLOW)(X, by_row, Condition(), Context()).x0, own(X, by_row, Condition(), Context()).x0) < 1e-7
    )
    assert adapt_path(own, RectifiedFlow()) is own and adapt_path(theirs, FLOW).path == FLOW


def test_pure_noise_is_shown_as_the_noisiest_level_that_a_model_knows():
    level, seen = FLOW(1.0), Toy(kind="eps", path=VP, reach=0)
    said = PathAdapter(seen, FLOW)(X, level, prompt(1, 2), Context())
    assert torch.isfinite(said.raw).all() and far(seen.calls[0][2], X) < 1e-12  # unit noise on both
    two = UniteAndConquer((Member(Toy(), prompt(1), 1.0, 0.5), Member(seen, prompt(1), 1.0, 0.5)), run_path=FLOW)
    assert torch.isfinite(run(two, X)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: (), "There are no models"),
        (lambda a: (a, a), "The reliabilities sum to 1.4; divide them by that"),
        (lambda a: (replace(a, reliability=-0.5),), "Model 0 has scale 2.0 and reliability -0.5"),
        (lambda a: (replace(a, scale=float("inf"), reliability=1.0),), "give a finite scale"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        UniteAndConquer(make(members()[0]))


@pytest.mark.parametrize("kind", ["regions", "canonical", "instances", "unite", "collaborate"])
def test_what_a_solver_tells_the_network_reaches_every_part(kind):
    """A target time, one per sample, beside conditions of the parts' own."""
    time = torch.tensor([0.3, -0.4], dtype=torch.float64)
    own, run_condition = prompt(1), Condition(extra={"target_time": time})
    expected = ClassifierFree(Toy(), 2.0)(
        X, LEVEL, Condition(tokens=prompt(1, 2).tokens, extra={"target_time": time}), Context()
    )
    index = grid_index(4, 5)
    views = index_view(index, 4, 5, own), index_view(index, 4, 5, own)
    ones = torch.ones(1, 1, 4, 5, dtype=torch.float64)
    made = {
        "regions": Regions(Toy(), (Region(ones, own), Region(ones, own)), lambda d, s, n: ClassifierFree(d, s, n), 2.0),
        "canonical": CanonicalDenoiser(ClassifierFree(Toy(), 2.0), views),
        "instances": SyncTweedies(ClassifierFree(Toy(), 2.0), views),
        "unite": UniteAndConquer((Member(Toy(), own, 2.0),)),
        "collaborate": CollaborativeDiffusion(
            (Collaborator(ClassifierFree(Toy(), 2.0), constant(0), Condition(tokens=prompt(1, 2).tokens)),)
        ),
    }[kind]
    x, told = X, run_condition
    if kind == "instances":
        x, told = torch.cat([X, X]), Condition(extra={"target_time": time.repeat(2)})
    said = made(x, LEVEL, told, Context())
    assert far(said.x0[:2], expected.x0) < 1e-12


# ---- collaborative ----


def constant(value):
    return lambda x, level, condition: torch.full((len(x), 1, *x.shape[2:]), float(value), dtype=x.dtype)


def pointwise(x, level, condition):
    return x[:, :1] * condition.tokens.mean()


def test_maps_sum_to_one_and_weigh_the_models_pixel_by_pixel():
    conditions = prompt(1, 2), prompt(2, 2), prompt(3, 2)
    kinds = "flow", "eps", "x0"
    parts = tuple(
        Collaborator(Toy(kind=k, seed=i), pointwise, c) for i, (k, c) in enumerate(zip(kinds, conditions, strict=True))
    )
    both = CollaborativeDiffusion(parts)
    maps = both.maps(X, LEVEL, Condition())
    assert maps.shape == (2, 3, 4, 5) and far(maps.sum(1), torch.ones(2, 4, 5)) < 1e-14 and maps.std() > 0.01
    logits = torch.stack([X[:, 0] * c.tokens.mean() for c in conditions], 1)
    assert far(maps, logits.exp() / logits.exp().sum(1, keepdim=True)) < 1e-14
    x0 = sum(maps[:, i : i + 1] * Toy(seed=i)(X, LEVEL, c, Context()).x0 for i, c in enumerate(conditions))
    assert far(both(X, LEVEL, Condition(), Context()).x0, x0) < 1e-12


def test_equal_influence_is_the_mean_and_its_limits_pick_one():
    models = [Toy(seed=i) for i in range(2)]
    own = [m(X, LEVEL, prompt(1, 2), Context()).raw for m in models]
    for values, expected in (((0.7, 0.7), (own[0] + own[1]) / 2), ((0.0, -torch.inf), own[0]), ((-800.0, 0.0), own[1])):
        parts = tuple(Collaborator(m, constant(v)) for m, v in zip(models, values, strict=True))
        assert far(CollaborativeDiffusion(parts)(X, LEVEL, prompt(1, 2), Context()).raw, expected) < 1e-14


def test_influence_of_another_size_is_refused():
    wrong = Collaborator(Toy(), lambda x, level, condition: x.mean(1))
    with pytest.raises(ValueError, match=re.escape("The influence of model 0 is (2, 4, 5); it must be one number per pixel")):
        CollaborativeDiffusion((wrong,))(X, LEVEL, prompt(1, 2), Context())
