"""Classifier-free guidance on a conditional mixture whose branches are known exactly."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from samplers import (
    ClassifierFree,
    Condition,
    Context,
    NoiseLevel,
    RectifiedFlow,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
)
from samplers.analytic import Mixture
from samplers.prediction import Prediction

PATH = RectifiedFlow()
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([0, 1, 2, 1]))
LEVEL = PATH(0.6)


@dataclass
class Spy:
    """A denoiser that notes how it was called."""

    inner: Mixture
    branches: list = field(default_factory=list)
    conditions: list = field(default_factory=list)

    @property
    def path(self):
        return self.inner.path

    def __call__(self, x, level, condition, context):
        self.branches.append(context.branch)
        self.conditions.append(condition)
        return self.inner(x, level, condition, context)


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.0, 2.0, 7.5])
def test_guidance_is_affine_in_every_reading(kind, scale):
    """eps = eps_null + scale (eps_cond - eps_null), whichever prediction it acted on."""
    mixture = Mixture.example(PATH, kind, labelled=True)
    guided = ClassifierFree(mixture, scale)(X, LEVEL, LABELS, Context())
    cond, null = (mixture(X, LEVEL, c, Context()) for c in (LABELS, LABELS.null()))
    for name in ("eps", "x0", "v", "score"):
        a, b = getattr(cond, name), getattr(null, name)
        assert torch.allclose(getattr(guided, name), b + scale * (a - b), atol=1e-11)
    assert guided.x is X and guided.level is LEVEL


def test_guidance_sharpens():
    """Guided scores add up: score_null + scale (score_cond - score_null), by automatic differentiation of the densities."""
    mixture = Mixture.example(PATH, "flow", labelled=True)
    guided = ClassifierFree(mixture, 3.0)(X, LEVEL, LABELS, Context())
    null, cond = mixture.score(X, LEVEL), mixture.score(X, LEVEL, LABELS)
    assert torch.allclose(guided.score, null + 3.0 * (cond - null), atol=1e-11)
    x = sample(ClassifierFree(mixture, 3.0), get_solver("dpmpp_2m"), X, get_grid("uniform", PATH, 40), LABELS)
    every = torch.stack([mixture.log_density(x, PATH(0.0), Condition(label=torch.full((4,), c))) for c in range(3)])
    assert torch.equal(every.argmax(0), LABELS.label)  # each sample is likeliest under its own class


@pytest.mark.parametrize(("scale", "branches", "each"), [(1.0, ("cond",), 1), (0.0, ("null",), 1), (2.0, ("cond", "null"), 2)])
def test_only_what_is_needed_runs(scale, branches, each):
    spy, context = Spy(Mixture.example(PATH, labelled=True)), Context()
    ClassifierFree(spy, scale)(X, LEVEL, LABELS, context)
    assert spy.branches == [branches]
    assert context.evaluations == each * len(X)


def test_interval_is_in_log_snr():
    """Guided inside, plain conditional outside, and the count says so: whatever the number of steps."""
    mixture = Mixture.example(PATH, labelled=True)
    guided = ClassifierFree(mixture, 4.0, interval=(-1.0, 0.5))
    for steps in (8, 16):
        levels, context = get_grid("karras", PATH, steps), Context()
        sample(guided, get_solver("euler"), X, levels, LABELS, context=context)
        inside = sum(-1.0 <= level.logsnr <= 0.5 for level in levels[:-1])
        assert 0 < inside < steps
        assert context.evaluations == (steps + inside) * len(X)
    for logsnr, scale in [(-1.5, 1.0), (-1.0, 4.0), (0.3, 4.0), (0.9, 1.0)]:
        level = PATH.at_logsnr(logsnr)
        level = NoiseLevel(level.t, level.alpha, level.sigma)
        if logsnr == -1.0:
            level.__dict__["logsnr"] = logsnr  # the bound itself, free of rounding
        expected = ClassifierFree(mixture, scale)(X, level, LABELS, Context()).x0
        assert torch.equal(guided(X, level, LABELS, Context()).x0, expected)


def test_levels_per_sample():
    """Training hands in (B,) levels: each row is what it would be alone, with the interval applied row by row."""
    for path in (PATH, VariancePreserving.linear()):
        guided = ClassifierFree(Mixture.example(path, "v", labelled=True), 4.0, interval=(-1.0, 0.5))
        times = torch.tensor([0.32, 0.5, 0.45, 0.95], dtype=torch.float64)
        together = guided(X, path(times), LABELS, Context())
        for i, t in enumerate(times.tolist()):
            alone = guided(X[i : i + 1], path(t), LABELS[i : i + 1], Context())
            assert torch.allclose(together.x0[i : i + 1], alone.x0, atol=1e-9)


def test_conditions_are_joined_once_per_run():
    spy = Spy(Mixture.example(PATH, labelled=True))
    sample(ClassifierFree(spy, 2.0), get_solver("euler"), X, get_grid("uniform", PATH, 6), LABELS)
    assert len(spy.conditions) == 6 and all(c is spy.conditions[0] for c in spy.conditions)
    sample(ClassifierFree(spy, 2.0), get_solver("euler"), X, get_grid("uniform", PATH, 2), LABELS)
    assert spy.conditions[-1] is not spy.conditions[0]  # a new run has its own memory


@pytest.mark.parametrize("rows", [1, 4])
def test_negative_condition(rows):
    mixture = Mixture.example(PATH, labelled=True)
    negative = Condition(label=torch.full((rows,), 2))
    guided = ClassifierFree(mixture, 3.0, negative)(X, LEVEL, LABELS, Context())
    cond = mixture(X, LEVEL, LABELS, Context()).x0
    null = mixture(X, LEVEL, Condition(label=torch.full((4,), 2)), Context()).x0
    assert torch.allclose(guided.x0, null + 3 * (cond - null), atol=1e-12)
    plain = ClassifierFree(mixture, 0.0, negative)(X, LEVEL, LABELS, Context())
    assert torch.allclose(plain.x0, null, atol=1e-14)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True, False, True]] * 4)])
def test_text_conditions_with_and_without_a_mask(mask):
    """The empty condition has no real token; without a mask every token of the prompt is real."""
    spy = Spy(Mixture.example(PATH))
    ClassifierFree(spy, 2.0)(X, LEVEL, Condition(tokens=torch.ones(4, 3, 8), mask=mask), Context())
    cond, null = spy.conditions[0].mask.chunk(2)
    assert not null.any() and torch.equal(cond, torch.ones(4, 3, dtype=torch.bool) if mask is None else mask)


def test_learned_variance_is_the_conditional_one():
    class Learned:
        path = PATH

        def __call__(self, x, level, condition, context):
            return Prediction(x, level, x, (1.0, 0.0), variance=condition.label[:, None].double())

    guided = ClassifierFree(Learned(), 2.0)(X, LEVEL, LABELS, Context())
    assert torch.equal(guided.variance[:, 0], LABELS.label.double())


@pytest.mark.parametrize("scale", [math.nan, math.inf, "7", None, True])
def test_bad_scales_are_refused(scale):
    with pytest.raises(ValueError, match="guidance scale must be a finite number"):
        ClassifierFree(Mixture.example(PATH), scale)


@pytest.mark.parametrize("interval", [(1.0, -1.0), (0.0, 0.0), (math.nan, 1.0)])
def test_empty_intervals_are_refused(interval):
    with pytest.raises(ValueError, match="interval"):
        ClassifierFree(Mixture.example(PATH), 2.0, interval=interval)
