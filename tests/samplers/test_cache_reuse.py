"""Output caches: what they say at skipped steps, how often they evaluate, and that nothing leaks between branches or runs."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, VariancePreserving, get_grid, get_solver, sample, trajectory
from samplers.analytic import Mixture, predict_as
from samplers.cache import EasyCache, Reuse
from samplers.guidance import CFGZeroStar, ClassifierFree, Rescale
from samplers.path import NoiseLevel
from samplers.prediction import Prediction

FLOW = RectifiedFlow()
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([0, 1, 2, 1]))
CACHES = {"reuse": lambda d: Reuse(d, 2), "reuse 3": lambda d: Reuse(d, 3, order=2), "easy": lambda d: EasyCache(d, 0.3)}


@dataclass
class Counted:
    """A denoiser that notes the step, branch and number of samples of every evaluation."""

    inner: Mixture
    calls: list = field(default_factory=list)

    @property
    def path(self):
        return self.inner.path

    def __call__(self, x, level, condition, context):
        self.calls.append((context.step, context.branch, len(x)))
        return self.inner(x, level, condition, context)


@dataclass(frozen=True)
class Polynomial:
    """x0 = a polynomial in logsnr, whatever x is: extrapolation of its degree is exact."""

    degree: int
    path: RectifiedFlow = FLOW

    def __call__(self, x, level, condition, context):
        context.count(len(x))
        value = sum((0.3 + k) * level.logsnr**k for k in range(self.degree + 1))
        return Prediction(x, level, torch.full_like(x, value), (1.0, 0.0))


def mixture(kind="flow", path=FLOW):
    return Mixture.example(path, kind, labelled=True)


def run(denoiser, steps=12, solver="euler", grid="karras", context=None, x=X, condition=LABELS, path=FLOW):
    levels = get_grid(grid, path, steps)
    return sample(denoiser, get_solver(solver), levels[0].sigma * x, levels, condition, context=context)


@pytest.mark.parametrize("cache", [lambda d: Reuse(d, 1), lambda d: EasyCache(d, 0.0)])
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_off_is_bit_identical(cache, solver):
    context = Context()
    assert torch.equal(run(cache(mixture()), solver=solver, context=context), run(mixture(), solver=solver))
    assert context.evaluations == (12 if solver == "dpmpp_2m" else 23) * len(X)
    assert not any(key[0] == "memory" for key in context.store)


@pytest.mark.parametrize("stride", [2, 3, 5])
@pytest.mark.parametrize("steps", [1, 7, 12])
def test_evaluations_are_as_stated(stride, steps):
    """ceil(n / stride), at steps 0, stride, 2 stride, ...; under guidance for both branches, in one batch."""
    spy, context = Counted(mixture()), Context()
    run(Reuse(spy, stride), steps, context=context)
    assert [step for step, _, _ in spy.calls] == list(range(0, steps, stride))
    assert context.evaluations == math.ceil(steps / stride) * len(X)
    spy, context = Counted(mixture()), Context()
    run(ClassifierFree(Reuse(spy, stride), 3.0), steps, context=context)
    assert spy.calls == [(step, ("cond", "null"), 2 * len(X)) for step in range(0, steps, stride)]


def test_skips_only_inside_its_interval():
    spy, levels = Counted(mixture()), get_grid("karras", FLOW, 12)
    run(Reuse(spy, 4, interval=(-1.0, 1.0)))
    evaluated, last = [], None
    for step, level in enumerate(levels[:-1]):
        if not -1 <= level.logsnr <= 1 or last is None or step - last >= 4:
            evaluated, last = [*evaluated, step], step
    assert [step for step, _, _ in spy.calls] == evaluated and 4 < len(evaluated) < 12


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_polynomials_are_extrapolated_exactly(order):
    """With order + 1 outputs the next ones are exact, on an uneven grid; one degree more is not."""
    for degree, exact in ((order, True), (order + 1, False)):
        denoiser, context = Reuse(Polynomial(degree), 2, order), Context()
        for step, logsnr in enumerate([-2.0, -1.7, -1.1, -0.4, -0.2, 0.3, 0.9, 1.0]):
            level = FLOW.at_logsnr(logsnr)
            said = denoiser(X, level, Condition(), context.at(step)).x0
            error = (said - Polynomial(degree)(X, level, Condition(), Context()).x0).abs().max()
            if step % 2 == 0:
                assert error == 0
            elif step >= 2 * order:
                assert (error < 1e-12) if exact else (error > 1e-3)
        assert context.evaluations == 4 * len(X)


@pytest.mark.parametrize("reading", ["x0", "eps", "v", "flow"])
@pytest.mark.parametrize("path", [FLOW, VariancePreserving.linear()], ids=["flow", "VP"])
def test_order_0_repeats_the_reading(reading, path):
    denoiser, context, model = None, Context(), mixture("v", path)
    denoiser = Reuse(model, 2, 0, reading=reading)
    said = [denoiser(X, path(t), LABELS, context.at(step)) for step, t in enumerate((0.6, 0.5))]
    values = [p.flow(path) if reading == "flow" else getattr(p, reading) for p in said]
    assert (values[0] - values[1]).abs().max() < 1e-12
    assert (said[0].x0 - model(X, path(0.6), LABELS, Context()).x0).abs().max() < 1e-12


def test_pure_noise_is_repeated_but_not_extrapolated_from():
    denoiser, context = Reuse(mixture("x0"), 2, 2), Context()
    first = denoiser(X, FLOW(1.0), LABELS, context.at(0)).x0
    assert torch.equal(denoiser(X, FLOW(0.9), LABELS, context.at(1)).x0, first)
    third = denoiser(X, FLOW(0.8), LABELS, context.at(2)).x0
    assert torch.equal(denoiser(X, FLOW(0.7), LABELS, context.at(3)).x0, third)


def test_extrapolation_beats_repetition_beats_fewer_steps():
    """Against the uncached run of the same grid: what a cache is for."""
    exact = run(mixture(), 48)
    error = {order: (run(Reuse(mixture(), 2, order), 48) - exact).norm() for order in (0, 1, 2)}
    assert error[2] < error[1] < error[0]
    assert error[1] < (run(mixture(), 24) - exact).norm()


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "heun"])
def test_separate_calls_and_one_batch_of_two_branches_agree(name, solver):
    """Guidance by two calls remembers its branches apart, and says what one batch of 2B says."""

    class Apart(ClassifierFree):
        def __call__(self, x, level, condition, context):
            cond = self.denoiser(x, level, condition, context.fork("cond"))
            null = self.denoiser(x, level, condition.null(), context.fork("null"))
            return self.combine(cond, null, self.scale, context)

    for cache in (CACHES[name], lambda d: d):
        together, apart = Context(), Context()
        a = run(ClassifierFree(cache(mixture()), 2.0), solver=solver, context=together)
        b = run(Apart(cache(mixture()), 2.0), solver=solver, context=apart)
        assert (a - b).abs().max() < 1e-10  # `easy` evaluates all rows of a call where one needs it
        assert together.evaluations >= apart.evaluations and (name == "easy" or together.evaluations == apart.evaluations)


@pytest.mark.parametrize("name", CACHES)
def test_an_image_does_not_depend_on_its_batch(name):
    cached = CACHES[name](mixture())
    together, context = run(cached, 30), Context()
    alone, counted = [], 0
    for i in range(len(X)):
        context = Context()
        alone.append(run(cached, 30, x=X[i : i + 1], condition=LABELS[i : i + 1], context=context))
        counted += context.evaluations
    assert (together - torch.cat(alone)).abs().max() < 1e-10
    context = Context()
    run(cached, 30, context=context)
    assert context.evaluations == counted < 30 * len(X)


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_repeated_step_is_harmless(name, solver):
    """Running every step twice from the same state gives the run that does not."""
    cached, levels, context, rule = CACHES[name](mixture()), get_grid("karras", FLOW, 12), Context(steps=12), get_solver(solver)
    plain = list(trajectory(cached, rule, X, levels, LABELS))
    state = replace(rule.init(X), level=levels[0])
    for step in range(12):
        for _ in range(2):
            result = rule.step(cached, state, levels[step], levels[step + 1], LABELS, context.at(step))
        state = replace(result, step=step + 1, level=levels[step + 1])
        assert torch.equal(state.x, plain[step].x)


@pytest.mark.parametrize("name", CACHES)
def test_runs_branches_and_adapters_do_not_mix(name):
    cached, context = CACHES[name](mixture()), Context()
    first = run(cached, context=context)
    memories = sum(key[0] == "memory" for key in context.store)
    assert torch.equal(run(cached, context=context), first)  # even where a context is used twice
    for other in (replace(context, adapters={"a": 0.5}), context.fork("tile", 3)):
        assert torch.equal(run(cached, context=other), first)
    assert sum(key[0] == "memory" for key in context.store) == 3 * memories
    assert all(len(value) <= 4 for key, value in context.store.items() if key[0] == "memory")  # bounded


@pytest.mark.parametrize("name", CACHES)
def test_early_exit_and_a_change_of_batch(name):
    cached, levels, context = CACHES[name](mixture()), get_grid("karras", FLOW, 12), Context()
    for state in trajectory(cached, get_solver("euler"), X, levels, LABELS, context=context):
        if state.step == 5:
            break
    level = levels[5]
    said = cached(X[:2], level, LABELS[:2], context.at(5)).x0  # two images go on alone: what is remembered does not fit them
    assert torch.equal(said, mixture()(X[:2], level, LABELS[:2], Context()).x0)


@pytest.mark.parametrize("name", CACHES)
def test_a_branch_that_was_away_starts_anew(name):
    """Guidance in an interval leaves and re-enters branches: what lies too far back is not extrapolated from."""
    spy = Counted(mixture())
    cached, context = CACHES[name](spy), Context()
    for step, t in ((0, 0.9), (1, 0.85), (2, 0.8), (9, 0.3)):
        said = cached(X + step, FLOW(t), LABELS, context.at(step)).x0
    assert spy.calls[-1][0] == 9
    if name != "easy":  # one output is known again, so it is repeated
        assert torch.equal(cached(X, FLOW(0.2), LABELS, context.at(10)).x0, said)


def test_levels_per_sample_are_never_cached():
    times = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    for cache in CACHES.values():
        context = Context()
        for step in range(4):
            cache(mixture())(X, FLOW(times), LABELS, context.at(step))
        assert context.evaluations == 16


def test_learned_variance_is_repeated():
    @dataclass(frozen=True)
    class Learned(Polynomial):
        def __call__(self, x, level, condition, context):
            return replace(super().__call__(x, level, condition, context), variance=x + 1)

    for cache in (Reuse(Learned(0), 2), EasyCache(Learned(0), 100.0)):
        context = Context()
        said = [cache(X * (step + 1), FLOW(0.9 - 0.1 * step), Condition(), context.at(step)) for step in range(4)]
        assert context.evaluations == 2 * len(X)
        assert torch.equal(said[3].variance, said[2 if isinstance(cache, Reuse) else 1].variance)


def test_easy_cache_follows_its_equations():
    """One image, step by step: accumulate rate |dx| / |v|, evaluate and reset at the threshold, else v = x + (v - x)_last."""
    model, threshold, context = mixture(), 0.02, Context()
    levels, x, image = get_grid("uniform", FLOW, 40), X[:1], LABELS[:1]
    ours = list(trajectory(EasyCache(model, threshold), get_solver("euler"), x, levels, image, context=context))
    rate = total = before = offset = None
    evaluated = []

    def size(v):
        return v.abs().mean().item()

    for step, (s, t) in enumerate(pairwise(levels)):
        if rate is not None:
            total += rate * size(x - before[0]) / size(before[1])
        if rate is None or total >= threshold or not -1.7 <= s.logsnr <= 3.0:
            v = model(x, s, image, Context()).flow(FLOW)
            if before is not None:
                rate = size(v - before[1]) / size(x - before[0])
            offset, total = v - x, 0.0
            evaluated.append(step)
        else:
            v = x + offset
        before = (x, v)
        x = x + (t.t - s.t) * v
        assert (ours[step].x - x).abs().max() < 1e-10
    inside = [step for step in evaluated if -1.7 <= levels[step].logsnr <= 3.0]
    assert context.evaluations == len(evaluated) < 25 and len(inside) > 4


def test_easy_cache_saves_more_at_higher_thresholds_and_errs_less_at_lower():
    exact, evaluations, errors = run(mixture(), 40, grid="uniform"), [], []
    for threshold in (0.02, 0.1, 0.4):
        context = Context()
        errors.append((run(EasyCache(mixture(), threshold), 40, grid="uniform", context=context) - exact).norm())
        evaluations.append(context.evaluations)
    assert evaluations == sorted(evaluations, reverse=True) and evaluations[-1] < 20 * len(X) < 40 * len(X)
    assert errors[0] < errors[1] < errors[2]
    context = Context()
    run(EasyCache(mixture(), 0.4, interval=(50.0, 60.0)), 40, context=context)
    assert context.evaluations == 40 * len(X)


@pytest.mark.parametrize("kind", ["eps", "v", "edm"])
def test_every_prediction_kind(kind):
    """Under and over guidance, with rules that read the branches outside."""
    for cache in CACHES.values():
        reference = run(ClassifierFree(cache(mixture("x0")), 2.0))
        assert (run(ClassifierFree(cache(mixture(kind)), 2.0)) - reference).abs().max() < 1e-9
        for rule in (Rescale(ClassifierFree(cache(mixture(kind)), 3.0)), cache(CFGZeroStar(mixture(kind), 3.0))):
            assert torch.isfinite(run(rule)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    class Loud:
        path = FLOW

        def __call__(self, x, level, condition, context):
            context.count(len(x))
            return predict_as("flow", FLOW, x, level, 100 * torch.tanh(x), x)

    for cache in (Reuse(Loud(), 2, 2), EasyCache(Loud(), 0.3)):
        result = run(cache, x=X.to(dtype))
        assert result.dtype == dtype and torch.isfinite(result).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: Reuse(d, 0), "stride must be a whole number of at least 1"),
        (lambda d: Reuse(d, 2.0), "stride must be a whole number"),
        (lambda d: Reuse(d, 2, order=4), "order=4"),
        (lambda d: Reuse(d, 2, reading="score"), "choose one of x0, eps, v, flow"),
        (lambda d: Reuse(d, 2, interval=(1.0, 1.0)), "interval .* is empty"),
        (lambda d: EasyCache(d, -0.1), "threshold must be a finite number of at least 0"),
        (lambda d: EasyCache(d, math.nan), "threshold"),
    ],
)
def test_mistakes_are_sentences(build, message):
    with pytest.raises(ValueError, match=message):
        build(mixture())


def test_a_level_object_need_not_come_from_the_path():
    level = NoiseLevel(0.5, 0.5, 0.5)
    assert torch.equal(Reuse(mixture(), 2)(X, level, LABELS, Context()).x0, mixture()(X, level, LABELS, Context()).x0)
