"""Guidance rules against their equations written out a second time, in float64, on mixtures whose branches are known."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import torch

from samplers import Condition, Context, NoiseLevel, RectifiedFlow, VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.guidance import (
    AdaptiveProjected,
    Autoguidance,
    CFGZeroStar,
    ClassifierFree,
    Clip,
    DynamicThreshold,
    Guided,
    NormRescale,
    Piecewise,
    PowerCosine,
    Rescale,
)
from samplers.guidance.registry import GUIDANCE, get_guidance
from samplers.prediction import Prediction, prediction_row

FLOW, VP = RectifiedFlow(), VariancePreserving.linear()
SHAPE = (2, 3, 3)
X = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([0, 1, 2, 1]))
LEVEL = FLOW(0.6)
KINDS = ["eps", "x0", "v", "flow", "edm"]
PIXELS = (1, 2, 3)


def mixture(path=FLOW, kind="flow"):
    return Mixture.example(path, kind, labelled=True, shape=SHAPE)


def branches(denoiser, level=LEVEL):
    return denoiser(X, level, LABELS, Context()), denoiser(X, level, LABELS.null(), Context())


def call(denoiser, level=LEVEL, context=None, x=X, condition=LABELS):
    return denoiser(x, level, condition, context or Context())


def close(a, b, tolerance=1e-12):
    assert (a - b).abs().max() < tolerance


def dot(a, b):
    return (a * b).sum(PIXELS, keepdim=True)


@dataclass
class Counted:
    """A denoiser that notes the branches it was asked for, with the number of samples."""

    inner: Mixture
    calls: list = field(default_factory=list)

    @property
    def path(self):
        return self.inner.path

    def __call__(self, x, level, condition, context):
        self.calls.append((context.branch, len(x)))
        return self.inner(x, level, condition, context)


RULES = {
    "rescale": lambda d: Rescale(ClassifierFree(d, 5.0)),
    "norm": lambda d: NormRescale(ClassifierFree(d, 5.0)),
    "norm shrink": lambda d: NormRescale(ClassifierFree(d, 5.0), patch=0, shrink=True),
    "rescale raw": lambda d: Rescale(ClassifierFree(d, 5.0), on="raw"),
    "apg": lambda d: AdaptiveProjected(d, 5.0, eta=0.2, threshold=1.5, momentum=-0.5),
    "zero": lambda d: CFGZeroStar(d, 5.0),
    "zero start": lambda d: CFGZeroStar(d, 5.0, zero_until=-0.2),
    "auto": lambda d: Autoguidance(d, replace(d, weights=d.weights.flip(0)), 2.5),
    "clip": lambda d: Clip(ClassifierFree(d, 5.0)),
    "dynamic": lambda d: DynamicThreshold(ClassifierFree(d, 5.0), 0.8),
    "scheduled": lambda d: ClassifierFree(d, PowerCosine(5.0, 2.0, FLOW), interval=(-2.0, 3.0)),
    "both kept": lambda d: ClassifierFree(d, 1.0, keep_both=True),
    "channels": lambda d: ClassifierFree(d, 5.0, channels=1),
    "all": lambda d: DynamicThreshold(Rescale(AdaptiveProjected(d, 5.0, eta=0.5, threshold=3.0)), 0.9),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0])
def test_rescale(kind, factor):
    d = mixture(kind=kind)
    cond, null = branches(d)
    x0 = null.x0 + 4 * (cond.x0 - null.x0)
    ratio = cond.x0.std(PIXELS, keepdim=True) / x0.std(PIXELS, keepdim=True)
    close(call(Rescale(ClassifierFree(d, 4.0), factor)).x0, factor * ratio * x0 + (1 - factor) * x0)

    raw = null.raw + 4 * (cond.raw - null.raw)
    ratio = cond.raw.std(PIXELS, keepdim=True) / raw.std(PIXELS, keepdim=True)
    close(call(Rescale(ClassifierFree(d, 4.0), factor, on="raw")).raw, factor * ratio * raw + (1 - factor) * raw)
    full = call(Rescale(ClassifierFree(d, 4.0), 1.0)).x0
    close(full.std(PIXELS), cond.x0.std(PIXELS))


def test_rescale_needs_guidance_to_compare_with():
    with pytest.raises(ValueError, match="put it around guidance"):
        call(Rescale(mixture()))
    cond, _ = branches(mixture())
    close(call(Rescale(ClassifierFree(mixture(), 1.0))).x0, cond.x0)
    close(call(Rescale(ClassifierFree(mixture(), 5.0, interval=(3.0, 4.0)))).x0, cond.x0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
def test_apg_with_eta_one_is_classifier_free_guidance(kind, scale):
    d = mixture(kind=kind)
    close(call(AdaptiveProjected(d, scale, eta=1.0)).x0, call(ClassifierFree(d, scale)).x0, 1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize("threshold", [math.inf, 7.0])
def test_apg(eta, threshold):
    """x0 = cond + (w - 1)(orthogonal + eta parallel), and at eta 0 the update is orthogonal to the conditional image."""
    d = mixture(kind="v")
    cond, null = branches(d)
    gap = cond.x0 - null.x0
    norm = dot(gap, gap).sqrt()
    assert (norm < 7).any() and (norm > 7).any()
    gap = torch.where(norm > threshold, gap * (threshold / norm), gap)
    unit = cond.x0 / dot(cond.x0, cond.x0).sqrt()
    parallel = dot(gap, unit) * unit
    expected = cond.x0 + 5.0 * (gap - parallel + eta * parallel)
    result = call(AdaptiveProjected(d, 6.0, eta=eta, threshold=threshold)).x0
    close(result, expected, 1e-11)
    if eta == 0:
        close(dot(result - cond.x0, cond.x0), torch.zeros(4, 1, 1, 1), 1e-11)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_apg_momentum(eta):
    """The filtered gap is the sum of momentum^k times the gap of k steps ago."""
    d, context, gaps = mixture(kind="x0"), Context(), []
    apg = AdaptiveProjected(d, 4.0, eta=eta, momentum=-0.6)
    for step, t in enumerate([0.9, 0.7, 0.5, 0.3]):
        cond, null = branches(d, FLOW(t))
        gaps.append(cond.x0 - null.x0)
        gap = sum((-0.6) ** k * g for k, g in enumerate(reversed(gaps)))
        parallel = dot(gap, cond.x0) / dot(cond.x0, cond.x0) * cond.x0
        close(call(apg, FLOW(t), context.at(step)).x0, cond.x0 + 3.0 * (gap - parallel + eta * parallel), 1e-11)


def test_apg_momentum_is_keyed_by_step_and_branch():
    d = mixture(kind="x0")
    apg, context = AdaptiveProjected(d, 4.0, momentum=-0.6), Context()
    first = call(apg, FLOW(0.9), context.at(0)).x0
    second = call(apg, FLOW(0.7), context.at(1)).x0
    assert torch.equal(call(apg, FLOW(0.7), context.at(1)).x0, second)  # a repeated step
    assert torch.equal(call(apg, FLOW(0.9), context.at(0)).x0, first)  # a run that starts over
    alone = call(apg, FLOW(0.7)).x0
    assert not torch.allclose(second, alone)
    assert torch.equal(call(apg, FLOW(0.7), context.at(1).fork("tile", 3)).x0, alone)
    assert torch.equal(call(apg, FLOW(0.7), replace(context.at(1), adapters={"a": 1.0})).x0, alone)
    for step in range(2, 9):
        call(apg, FLOW(0.5), context.at(step))
    kept = [value for key, value in context.store.items() if key[0] == "memory" and not any(key[2:])]
    assert len(kept) == 1 and len(kept[0]) == 2  # bounded, however long the run


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "VP"])
@pytest.mark.parametrize("kind", ["eps", "flow", "v"])
def test_zero_star(path, kind):
    d, level = mixture(path, kind), path(0.6)
    cond, null = (p.flow(path) for p in branches(d, level))
    s = (cond * null).sum(PIXELS, keepdim=True) / (null**2).sum(PIXELS, keepdim=True)
    expected = (1 - 3.0) * s * null + 3.0 * cond
    close(call(CFGZeroStar(d, 3.0), level).flow(path), expected, 1e-10)
    close(call(CFGZeroStar(d, 3.0, optimised=False), level).flow(path), null + 3 * (cond - null), 1e-10)
    close(call(CFGZeroStar(d, 1.0), level).flow(path), cond, 1e-12)


def test_zero_star_starts_by_standing_still():
    """From pure noise the first step goes nowhere and evaluates nothing; zero_until widens that, None turns it off."""
    d, levels = mixture(), get_grid("uniform", FLOW, 5)
    for until, still in ((-math.inf, 1), (FLOW(0.79).logsnr, 2), (None, 0)):
        context, xs = Context(), [X]
        denoiser = CFGZeroStar(d, 3.0, zero_until=until)
        sample(denoiser, get_solver("euler"), X, levels, LABELS, context=context, on_step=lambda s, xs=xs: xs.append(s.x))
        assert context.evaluations == 2 * len(X) * (5 - still)
        assert [bool((a - b).abs().max() < 1e-12) for a, b in pairwise(xs)] == [i < still for i in range(5)]
    for path in (FLOW, VP, VariancePreserving.linear(zero_terminal_snr=True)):
        still = call(CFGZeroStar(mixture(path), 3.0, zero_until=5.0), path(1.0))
        assert not still.flow(path).any() and still.null is None


@pytest.mark.parametrize("kind", KINDS)
def test_autoguidance(kind):
    strong, weak = mixture(kind=kind), replace(mixture(kind="x0"), stds=mixture().stds * 2)  # of another kind
    a, b = call(strong), call(weak)
    close(call(Autoguidance(strong, weak, 2.5)).x0, b.x0 + 2.5 * (a.x0 - b.x0), 1e-11)
    close(call(Autoguidance(strong, strong, 7.0)).x0, a.x0)
    over = call(Autoguidance(ClassifierFree(strong, 3.0), weak, 2.0))
    guided = call(ClassifierFree(strong, 3.0))
    close(over.x0, b.x0 + 2 * (guided.x0 - b.x0), 1e-11)
    assert torch.equal(over.cond.x0, guided.cond.x0)  # so that rescale still knows the conditional image
    with pytest.raises(ValueError, match="one noise path"):
        Autoguidance(strong, mixture(VP), 2.0)


@pytest.mark.parametrize(
    ("rule", "calls"),
    [
        (lambda d, w: AdaptiveProjected(d, 1.0), [(("cond",), 4)]),
        (lambda d, w: AdaptiveProjected(d, 2.0), [(("cond", "null"), 8)]),
        (lambda d, w: CFGZeroStar(d, 1.0), [(("cond",), 4)]),
        (lambda d, w: CFGZeroStar(d, 2.0, interval=(3.0, 4.0)), [(("cond",), 4)]),
        (lambda d, w: Rescale(ClassifierFree(d, 0.0)), [(("null",), 4)]),
        (lambda d, w: ClassifierFree(d, 0.0, channels=1), [(("cond", "null"), 8)]),
        (lambda d, w: ClassifierFree(d, 1.0, channels=1), [(("cond",), 4)]),
        (lambda d, w: ClassifierFree(d, 1.0, keep_both=True), [(("cond", "null"), 8)]),
        (lambda d, w: ClassifierFree(d, 2.0, interval=(3.0, 4.0), keep_both=True), [(("cond",), 4)]),
        (lambda d, w: ClassifierFree(d, PowerCosine(5.0, 1.0, FLOW)), [(("cond", "null"), 8)]),
        (lambda d, w: ClassifierFree(d, Piecewise(((-5.0, 1.0), (5.0, 1.0)))), [(("cond",), 4)]),
        (lambda d, w: Autoguidance(d, w, 1.0), [((), 4)]),
        (lambda d, w: Autoguidance(d, w, 2.0), [((), 4), (("weak",), 4)]),
        (lambda d, w: Autoguidance(d, w, 0.0), [(("weak",), 4)]),
    ],
)
def test_only_what_is_needed_runs(rule, calls):
    shared = []
    strong, weak = Counted(mixture(), shared), Counted(mixture(), shared)
    context = Context()
    call(rule(strong, weak), context=context)
    assert shared == calls
    assert context.evaluations == sum(count for _, count in calls)


def test_channels():
    """DiT's samples guide 3 of 4: the rest is the conditional branch's own."""
    cond, null = branches(mixture(kind="eps"))
    guided = call(ClassifierFree(mixture(kind="eps"), 4.0, channels=1)).eps
    close(guided[:, :1], (null.eps + 4 * (cond.eps - null.eps))[:, :1])
    assert torch.equal(guided[:, 1:], cond.eps[:, 1:])
    close(call(ClassifierFree(mixture(), 4.0, channels=2)).x0, call(ClassifierFree(mixture(), 4.0)).x0)
    with pytest.raises(ValueError, match="channels=3, but images here have 2"):
        call(ClassifierFree(mixture(), 4.0, channels=3))


@pytest.mark.parametrize(("percentile", "limit"), [(0.5, 1.0), (0.9, 1.0), (1.0, 0.8), (0.995, 50.0)])
def test_dynamic_threshold(percentile, limit):
    guided = ClassifierFree(mixture(kind="v"), 6.0)
    x0 = call(guided).x0
    s = torch.quantile(x0.abs().flatten(1), percentile, dim=1).clamp(min=limit).reshape(-1, 1, 1, 1)
    close(call(DynamicThreshold(guided, percentile, limit)).x0, x0.clamp(-s, s) / s * limit)
    assert (x0.abs() > 2).any()
    close(call(Clip(guided, limit)).x0, x0.clamp(-limit, limit))
    assert call(DynamicThreshold(guided, percentile, limit)).x0.abs().max() <= limit + 1e-12


def test_order_of_non_linear_rules_matters():
    guided = ClassifierFree(mixture(), 6.0)
    a = call(Clip(Rescale(guided))).x0
    b = call(Rescale(Clip(guided))).x0
    assert a.abs().max() <= 1 and (a - b).abs().max() > 1e-3
    linear = Autoguidance(guided, mixture(), 2.0)
    one = call(linear).x0
    cond, null = branches(mixture())
    close(one, cond.x0 + 2 * (null.x0 + 6 * (cond.x0 - null.x0) - cond.x0), 1e-11)


def test_power_cosine():
    """DiMR's schedule on the table's clock: 1 at the noisiest level, the scale at clean data, by noise alone on any path."""
    schedule = PowerCosine(5.0, 1.7, VP)
    for t in (0.001, 0.25, 0.6, 1.0):
        expected = 4 * (1 - math.cos((1 - t) ** 1.7 * math.pi)) / 2 + 1
        assert schedule(VP(t)) == pytest.approx(expected, abs=1e-9)
        assert schedule(FLOW.at_logsnr(VP(t).logsnr)) == pytest.approx(expected, abs=1e-6)
    assert schedule(VP(0.0)) == 5.0 and schedule(FLOW(1.0)) == 1.0 and schedule(FLOW(0.0)) == 5.0
    cond, null = branches(mixture())
    scale = PowerCosine(5.0, 2.0, FLOW)(LEVEL)
    close(call(ClassifierFree(mixture(), PowerCosine(5.0, 2.0, FLOW))).x0, null.x0 + scale * (cond.x0 - null.x0))


def test_piecewise():
    schedule = Piecewise(((-2.0, 1.0), (0.0, 6.0), (1.0, 3.0)))
    for logsnr, scale in [(-math.inf, 1), (-2, 1), (-1, 3.5), (0, 6), (0.5, 4.5), (1, 3), (9, 3), (math.inf, 3)]:
        level = NoiseLevel(0.5, 1.0, 1.0)
        level.__dict__["logsnr"] = float(logsnr)
        assert schedule(level) == pytest.approx(scale, abs=1e-12)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "VP"])
def test_levels_per_sample_and_independent_rows(name, path):
    """Training hands in (B,) levels: each row is what it would be alone."""
    rule = RULES[name](mixture(path, "v"))
    times = torch.tensor([0.32, 0.5, 0.45, 0.95], dtype=torch.float64)
    together = call(rule, path(times)).x0
    for i, t in enumerate(times.tolist()):
        alone = call(rule, path(t), x=X[i : i + 1], condition=LABELS[i : i + 1]).x0
        close(together[i : i + 1], alone, 1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_half_precision_stays_finite(name, dtype):
    """Large images in half precision: norms are taken in float32."""

    class Loud:
        path = FLOW

        def __call__(self, x, level, condition, context):
            base = torch.linspace(-60, 60, x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
            shift = condition.label.reshape(-1, 1, 1, 1).to(x.dtype)
            return Prediction(x, level, base + 5 * shift * base.roll(1, -1), (1.0, 0.0))

    x = torch.zeros(4, 2, 32, 32, dtype=dtype)
    loud = Loud()
    rule = Autoguidance(loud, loud, 2.0) if name == "auto" else RULES[name](loud)
    result = call(rule, x=x)
    assert result.x0.dtype == dtype and torch.isfinite(result.x0).all()


@pytest.mark.parametrize("name", RULES)
def test_learned_variance_passes(name):
    @dataclass(frozen=True)
    class Learned(Mixture):
        def __call__(self, x, level, condition, context):
            prediction = super().__call__(x, level, condition, context)
            return replace(prediction, variance=condition.label.reshape(-1, 1, 1, 1).double().expand_as(x))

    m = mixture()
    learned = Learned(m.path, m.means, m.stds, m.weights, m.labels, m.kind)
    if name == "zero start":  # nothing is evaluated, so there is no variance either
        assert call(RULES[name](learned), FLOW(0.9)).variance is None
    else:
        assert torch.equal(call(RULES[name](learned)).variance[:, 0, 0, 0], LABELS.label.double())


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "euler_a"])
def test_every_rule_under_every_kind_of_solver(name, solver):
    x = sample(
        RULES[name](mixture()), get_solver(solver), X, get_grid("uniform", FLOW, 8), LABELS, noise=lambda s, t: X.flip(0)
    )
    assert torch.isfinite(x).all() and x.abs().max() < 50


@pytest.mark.parametrize("rule", [lambda d: AdaptiveProjected(d, 3.0), lambda d: Rescale(ClassifierFree(d, 3.0)), Clip])
def test_eps_at_pure_noise_says_nothing_about_x0(rule):
    with pytest.raises(ValueError, match="At pure noise"):
        call(rule(mixture(kind="eps")), FLOW(1.0))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: Rescale(d, 1.5), "between 0 .off. and 1, got 1.5"),
        (lambda d: Rescale(d, on="eps"), "choose x0 or raw"),
        (lambda d: AdaptiveProjected(d, "7"), "finite number, got '7'"),
        (lambda d: AdaptiveProjected(d, 2.0, eta=math.nan), "eta=nan"),
        (lambda d: AdaptiveProjected(d, 2.0, threshold=0.0), "norm above 0"),
        (lambda d: AdaptiveProjected(d, 2.0, momentum=1.0), "between -1 and 1"),
        (lambda d: AdaptiveProjected(d, 2.0, interval=(1.0, 0.0)), "interval"),
        (lambda d: CFGZeroStar(d, math.inf), "finite number"),
        (lambda d: CFGZeroStar(d, 2.0, zero_until=math.inf), "zero_until=inf"),
        (lambda d: Autoguidance(d, d, None), "finite number, got None"),
        (lambda d: ClassifierFree(d, 2.0, channels=0), "at least 1"),
        (lambda d: Clip(d, 0.0), "above 0, got 0.0"),
        (lambda d: DynamicThreshold(d, 0.0), "percentile"),
        (lambda d: DynamicThreshold(d, limit=math.nan), "limit"),
        (lambda d: PowerCosine(5.0, 0.0, FLOW), "power above 0"),
        (lambda d: Piecewise(((0.0, 1.0), (0.0, 2.0))), "logsnr rising"),
        (lambda d: Piecewise(()), "logsnr rising"),
    ],
)
def test_mistakes_are_sentences(build, message):
    with pytest.raises(ValueError, match=message):
        build(mixture())


def test_branches_are_remembered_and_kept():
    guided = call(ClassifierFree(mixture(), 3.0))
    cond, null = branches(mixture())
    assert isinstance(guided, Guided) and torch.equal(guided.cond.raw, cond.raw) and torch.equal(guided.null.raw, null.raw)
    assert guided.cond.x is X and guided.null.x is X
    for changed in (guided.with_x0(X), guided.with_raw(X)):
        assert changed.null is guided.null and changed.cond is guided.cond
    row = prediction_row("v", LEVEL, FLOW)
    close(guided.read(row), guided.v)
    assert guided.read(guided.row) is guided.raw


class Flat:
    """A model whose prediction is one number all over, that of the label (0 without): no spread, no norm where it is 0."""

    path = VP

    def __init__(self, kind="x0", slope=0.0):
        self.kind, self.slope = kind, slope

    def __call__(self, x, level, condition, context):
        label = condition.label.clamp(min=0).to(x.dtype).reshape(-1, 1, 1, 1)
        return Prediction(x, level, label * torch.ones_like(x) + self.slope * x, prediction_row(self.kind, level, self.path))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["x0", "v", "eps"])
@pytest.mark.parametrize("name", [name for name, info in GUIDANCE.items() if "layers" not in info.options and not info.inner])
def test_predictions_without_spread_or_norm_stay_finite(name, kind, dtype):
    """Zeros, one constant, and a spread of rounding alone: nothing to divide by is nothing to change."""
    info, x = GUIDANCE[name], torch.zeros(3, *SHAPE, dtype=dtype)
    for slope in (0.0, 1e-30):
        model = Flat(kind, slope)
        options = {"scale": 3.0, "weak": Flat(kind), "threshold": 1.0, "momentum": -0.5}
        options = {option: value for option, value in options.items() if option in info.options}
        for inner in [ClassifierFree(model, 3.0)] if info.modifier else [model]:
            rule, solver = get_guidance(name, inner, get_solver("dpmpp_2m"), **options)
            out = sample(rule, solver, x, get_grid("karras", VP, 4), Condition(label=torch.tensor([0, 1, 2])))
            assert out.isfinite().all() and out.abs().max() < 1e5  # of eps, 1 / alpha at the start
    if name == "rescale":
        flat = Rescale(ClassifierFree(Flat(), 3.0), 1.0)(x, LEVEL, Condition(label=torch.tensor([0, 1, 2])), Context())
        assert torch.equal(flat.x0[:, 0, 0, 0], torch.tensor([0.0, 3.0, 6.0], dtype=dtype))
