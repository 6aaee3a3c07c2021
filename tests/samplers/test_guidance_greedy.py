"""Greedy guidance: what it returns is what it scored, and nothing that it saw was better."""

import math

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, get_grid, get_solver, normal, sample, seeded_noise
from samplers.analytic import Mixture
from samplers.guidance import ClassifierFree
from samplers.guidance.greedy import Greedy, RAdam, draws, guidance_scales, interpolations, slerp, together


def close(a, b, tolerance=1e-11):
    assert (a - b).abs().max() < tolerance


FLOW = RectifiedFlow()
LEVELS = get_grid("karras", FLOW, 6)
MIXTURE = Mixture.example(FLOW, labelled=True)
LEVEL = FLOW(0.85)
SHAPE = MIXTURE.means.shape[1:]
X = normal([1, 2, 3], SHAPE, "latents").double()
CONDITION = Condition(label=torch.tensor([0, 1, 0]))


def target(x0, condition=None):
    return -(x0 - 3.0).square().flatten(1).sum(1)


class Seen:
    """A heuristic that remembers every picture and score."""

    def __init__(self):
        self.scores = []

    def __call__(self, x0, condition):
        value = target(x0)
        self.scores.append(value.detach())
        return value


def guided(heuristic=target, **options):
    return Greedy(ClassifierFree(MIXTURE, 2.0), heuristic, **options)


CHOICES = {
    "scales": {"candidates": guidance_scales((-6.0, 0.0, 1.0, 8.0))},
    "slerp": {"candidates": interpolations(5)},
    "draws": {"candidates": draws(seeded_noise([1, 2, 3], X), 4, 0.5)},
    "gradient": {"iterations": 4, "rate": 0.1},
    "all": {"candidates": together([guidance_scales((3.0,)), interpolations(3)]), "iterations": 3, "rate": 0.1, "limit": 0.05},
}


@pytest.mark.parametrize("name", CHOICES)
@torch.no_grad()
def test_the_score_of_what_is_returned_is_the_best_of_all_seen(name):
    seen, context, level = Seen(), Context(), LEVEL
    found = guided(seen, **CHOICES[name])(X, level, CONDITION, context)
    assert torch.allclose(target(found.x0), torch.stack(seen.scores).amax(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(context.store["greedy", ()][0], torch.stack(seen.scores).amax(0))
    own = ClassifierFree(MIXTURE, 2.0)(X, level, CONDITION, Context())
    assert (target(found.x0) >= target(own.x0)).all() and (target(found.x0) > target(own.x0)).any()
    if name == "all":
        assert (found.x0 - own.x0).flatten(1).square().mean(1).sqrt().max() <= 0.05 + 1e-12


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
@torch.no_grad()
def test_nothing_to_choose_from_is_the_plain_run_and_a_choice_ends_higher(solver):
    def run(rule):
        return sample(rule, get_solver(solver), X, LEVELS, CONDITION)

    plain = run(ClassifierFree(MIXTURE, 2.0))

    def never(x0, condition):
        raise AssertionError

    assert torch.equal(run(guided(never)), plain)
    assert torch.equal(run(guided(never, iterations=3, interval=(50.0, 60.0))), plain)
    better = run(guided(iterations=10, rate=0.05))
    assert (target(better) > target(plain)).all()


@torch.no_grad()
def test_samples_do_not_look_at_one_another():
    rule = guided(**CHOICES["all"])
    both = rule(X, LEVEL, CONDITION, Context()).x0
    for i in range(3):
        alone = rule(X[i : i + 1], LEVEL, CONDITION[i : i + 1], Context()).x0
        close(both[i : i + 1], alone, 1e-11)


def test_candidates_are_what_they_say():
    rule, level = ClassifierFree(MIXTURE, 2.0), LEVEL
    with torch.no_grad():
        prediction = rule(X, level, CONDITION, Context())
        for scale, candidate in zip((0.0, 4.0), guidance_scales((0.0, 4.0))(prediction), strict=True):
            other = ClassifierFree(MIXTURE, scale)(X, level, CONDITION, Context())
            close(candidate, other.x0, 1e-11)
        first, middle, last = interpolations(3)(prediction)
    close(first, prediction.null.x0, 1e-10)
    close(last, prediction.cond.x0, 1e-10)
    a, b = prediction.null.eps.flatten(1), prediction.cond.eps.flatten(1)
    angle = torch.acos((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
    expected = ((a + b) * ((angle / 2).sin() / angle.sin())[:, None]).reshape(X.shape)
    close((X - level.alpha * middle) / level.sigma, expected, 1e-9)
    assert torch.equal(slerp(X, X, 0.3), 0.7 * X + 0.3 * X)
    plain = MIXTURE(X, level, CONDITION, Context())
    assert guidance_scales((1.0,))(plain) == [] == interpolations(3)(plain)


def test_radam_is_the_published_algorithm():
    """Algorithm 2 of arXiv 1908.03265 on numbers, past the step from which it trusts the second moment."""
    slopes = normal([4], (12,), "slopes")[0].double().tolist()
    ascent, m, v, rectified = RAdam(0.03), 0.0, 0.0, 0
    for t, g in enumerate(slopes, 1):
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g * g
        infinite, rho = 19.0, 19.0 - 2 * t * 0.9**t / (1 - 0.9**t)
        step = m / (1 - 0.5**t)
        if rho > 5:
            rectified += 1
            ratio = (rho - 4) * (rho - 2) * infinite / ((infinite - 4) * (infinite - 2) * rho)
            step *= math.sqrt(ratio) / math.sqrt(v / (1 - 0.9**t))
        assert float(ascent(torch.tensor(g, dtype=torch.float64))) == pytest.approx(0.03 * step, rel=1e-6)
    assert 4 < rectified < 12


def broken(x0, condition):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("heuristic", "options", "says"),
    [
        (broken, {}, "heuristic 'broken' failed on images .*KeyError"),
        (lambda x0, c: target(x0) * math.nan, {}, "gave nan for image 0"),
        (lambda x0, c: target(x0).sum(), {}, r"return one number per image, floats of shape \(3,\)"),
        (lambda x0, c: 3.0, {}, "returned float"),
        (lambda x0, c: target(x0.detach()), {"iterations": 1}, "heuristic .* does not depend on the images"),
        (target, {"iterations": -1}, "iterations=-1"),
        (target, {"rate": math.nan}, "rate=nan"),
        (target, {"limit": -1.0}, "limit=-1.0"),
    ],
)
def test_a_heuristic_that_cannot_be_used_is_one_sentence(heuristic, options, says):
    with pytest.raises(ValueError, match=says) as error, torch.no_grad():
        Greedy(MIXTURE, heuristic, **{"candidates": draws(seeded_noise([1, 2, 3], X), 1, 0.1), **options})(
            X, LEVEL, CONDITION, Context()
        )
    assert str(error.value).count("\n") == 0


def test_mistakes_in_candidates_are_sentences():
    for build, says in (
        (lambda: guidance_scales((math.inf,)), "finite guidance scales"),
        (lambda: interpolations(1), "interpolations=1"),
        (lambda: draws(seeded_noise([1], X[:1]), 0, 0.1), "draws=0"),
    ):
        with pytest.raises(ValueError, match=says):
            build()
