"""Guidance by perturbed networks: the formula on a stub, the perturbations on tiny backbones against dense attention."""

import math

import pytest
import torch
import torch.nn.functional as F

from samplers import Condition, Context, NetworkDenoiser, RectifiedFlow, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.guidance import (
    AdaptiveProjected,
    CFGZeroStar,
    ClassifierFree,
    PerturbedAttention,
    Rescale,
    SkipLayer,
    SmoothedEnergy,
    get_guidance,
)
from samplers.guidance.perturbed import _blur
from samplers.hooks import Site, with_hook
from tests.gen.test_hooks import tiny

FLOW = RectifiedFlow()
LEVEL = FLOW(0.6)
X = torch.randn(2, 3, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([1, 3]))
RULES = {"pag": PerturbedAttention, "slg": SkipLayer, "seg": SmoothedEnergy}


def denoiser(kind="dit", prediction="flow"):
    return NetworkDenoiser(tiny(kind, num_classes=5), FLOW, prediction)


def call(rule, context=None, condition=LABELS):
    with torch.no_grad():
        return rule(X, LEVEL, condition, context or Context())


def close(a, b, tolerance=1e-11):
    assert (a - b).abs().max() < tolerance


def perturbed(net, name, layers):
    """The conditional prediction under the perturbation, written out a second time through the network's hooks."""

    def dense(site, q, k, v, run):
        if site.index not in layers:
            return run(q, k, v)
        total, e = q.shape[1], site.extras
        if name == "seg":
            q = torch.cat([q[:, :e], q[:, e:].mean(1, keepdim=True).expand_as(q[:, e:])], 1)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        if name == "pag":
            patch = torch.arange(total) >= e
            blocked = patch[:, None] & patch[None, :] & ~torch.eye(total, dtype=torch.bool)
            logits = logits.masked_fill(blocked, -math.inf)
        return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)

    if name == "slg":
        return call(net, with_hook(Context(), "block", lambda i, n, x, run: x if i in layers else run()))
    return call(net, with_hook(Context(), "heads", dense))


@pytest.mark.parametrize("kind", ["dit", "uvit"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("layers", [(1,), (0, 2)])
def test_alone_and_with_classifier_free_guidance(name, kind, layers):
    """raw + s (cond - perturbed), raw the conditional or the guided prediction."""
    net, rule = denoiser(kind), RULES[name]
    cond, null, weak = call(net).raw, call(net, condition=LABELS.null()).raw, perturbed(net, name, layers).raw
    assert (cond - weak).abs().max() > 1e-3
    close(call(rule(net, 2.0, layers)).raw, cond + 2 * (cond - weak))
    cfg = ClassifierFree(net, 4.0)
    context = Context()
    close(call(rule(cfg, 2.0, layers, base=net), context).raw, null + 4 * (cond - null) + 2 * (cond - weak))
    assert context.evaluations == 3 * len(X)
    context = Context()
    both = get_guidance(name, net, None, scale=4.0, layers=layers, perturbed_scale=2.0)[0]
    close(call(both, context).raw, null + 4 * (cond - null) + 2 * (cond - weak))
    assert context.evaluations == 3 * len(X)


@pytest.mark.parametrize("name", RULES)
def test_on_top_of_rules_that_speak_x0(name):
    net, rule = denoiser(), RULES[name]
    cond, weak = call(net).x0, perturbed(net, name, (1,)).x0
    for under in (AdaptiveProjected(net, 4.0, eta=0.1), Rescale(ClassifierFree(net, 4.0)), CFGZeroStar(net, 4.0)):
        close(call(rule(under, 2.0, (1,), base=net)).x0, call(under).x0 + 2 * (cond - weak))
    outer = call(Rescale(rule(ClassifierFree(net, 4.0), 2.0, (1,), base=net), 1.0)).x0
    close(outer.std((1, 2, 3)), cond.std((1, 2, 3)))


def test_two_perturbations_add_up():
    net = denoiser()
    stacked = SkipLayer(PerturbedAttention(ClassifierFree(net, 4.0), 2.0, (0,), base=net), 1.5, (2,), base=net)
    swapped = PerturbedAttention(SkipLayer(ClassifierFree(net, 4.0), 1.5, (2,), base=net), 2.0, (0,), base=net)
    cond, cfg = call(net).raw, call(ClassifierFree(net, 4.0)).raw
    expected = cfg + 2 * (cond - perturbed(net, "pag", (0,)).raw) + 1.5 * (cond - perturbed(net, "slg", (2,)).raw)
    close(call(stacked).raw, expected)
    close(call(swapped).raw, expected)


def test_attention_to_itself_alone_is_the_value():
    q, k, v = (torch.randn(2, 6, 2, 4, dtype=torch.float64) for _ in range(3))
    rule = PerturbedAttention(denoiser(), 1.0, (0,))
    assert rule.perturb(Site(0, 1, 0, 2, 3), q, k, v, None) is v


@pytest.mark.parametrize("width", [0.6, 1.5, 40.0])
def test_blur_is_a_gaussian(width):
    """Against a dense two-dimensional convolution with reflected borders; a wide one approaches the mean."""
    grid = torch.randn(2, 7, 9, 2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    radii = [min(math.ceil(3 * width), n - 1) for n in (7, 9)]
    lines = [torch.exp(-0.5 * (torch.arange(-r, r + 1, dtype=torch.float64) / width) ** 2) for r in radii]
    kernel = lines[0][:, None] * lines[1][None, :]
    flat = grid.movedim((1, 2), (-2, -1)).reshape(-1, 1, 7, 9)
    padded = F.pad(flat, (radii[1], radii[1], radii[0], radii[0]), mode="reflect")
    expected = F.conv2d(padded, (kernel / kernel.sum())[None, None]).reshape(2, 2, 4, 7, 9).movedim((-2, -1), (1, 2))
    close(_blur(_blur(grid, 1, width), 2, width), expected)


def test_a_narrow_blur_changes_nothing_and_an_infinite_one_takes_the_mean():
    net = denoiser("uvit")
    close(call(SmoothedEnergy(net, 2.0, (1,), blur=1e-3)).raw, call(net).raw)
    q, k, v = (torch.randn(2, 1 + 8, 2, 4, dtype=torch.float64) for _ in range(3))
    seen = SmoothedEnergy(net, 2.0, (0,)).perturb(Site(0, 1, 1, 2, 4), q, k, v, lambda q, k, v: q)
    assert torch.equal(seen[:, :1], q[:, :1]) and torch.allclose(seen[:, 1:], q[:, 1:].mean(1, keepdim=True))


@pytest.mark.parametrize("name", RULES)
def test_nothing_runs_in_vain(name):
    net = denoiser()
    for rule, count in (
        (RULES[name](net, 0.0, (1,)), 1),
        (RULES[name](net, 2.0, (1,), interval=(3.0, 4.0)), 1),
        (RULES[name](net, 2.0, (1,)), 2),
        (RULES[name](ClassifierFree(net, 1.0), 2.0, (1,), base=net), 2),
        (RULES[name](CFGZeroStar(net, 3.0, zero_until=0.0), 2.0, (1,), base=net), 0),
    ):
        context = Context()
        call(rule, context)
        assert context.evaluations == count * len(X)


@pytest.mark.parametrize("name", RULES)
def test_levels_per_sample(name):
    rule = RULES[name](denoiser(), 2.0, (1,), interval=(-1.0, 1.0))
    times = torch.tensor([0.6, 0.95], dtype=torch.float64)
    with torch.no_grad():
        together = rule(X, FLOW(times), LABELS, Context()).x0
        for i, t in enumerate(times):
            alone = rule(X[i : i + 1], FLOW(times[i : i + 1]), LABELS[i : i + 1], Context()).x0
            close(together[i : i + 1], alone)
            close(alone, rule(X[i : i + 1], FLOW(t.item()), LABELS[i : i + 1], Context()).x0, 1e-5)  # a float clock is float32


@torch.no_grad()
def test_a_run_stays_finite_in_half_precision():
    net = NetworkDenoiser(tiny("uvit", num_classes=5).bfloat16(), FLOW, "flow")
    x = X.bfloat16()
    for rule in RULES.values():
        guided = rule(ClassifierFree(net, 4.0), 2.0, (1,), base=net)
        result = sample(guided, get_solver("dpmpp_2m"), x, get_grid("uniform", FLOW, 4), LABELS)
        assert result.dtype == torch.bfloat16 and torch.isfinite(result).all()


def test_mistakes_are_sentences():
    net = denoiser()
    for build, message in (
        (lambda: call(PerturbedAttention(ClassifierFree(net, 4.0), 2.0, (1,))), "give base="),
        (lambda: call(SkipLayer(net, 2.0, (3,))), "blocks 0 to 2"),
        (lambda: call(SkipLayer(Mixture.example(FLOW, shape=(3, 4, 8)), 2.0, (1,))), "'block' hook, and this network has none"),
        (lambda: SkipLayer(net, 2.0, ()), "numbers of the blocks"),
        (lambda: SkipLayer(net, 2.0, (-1,)), "numbers of the blocks"),
        (lambda: SkipLayer(net, math.nan, (1,)), "skip-layer guidance scale must be a finite number"),
        (lambda: SkipLayer(net, lambda level: 2.0, (1,)), "fixed scale"),
        (lambda: SmoothedEnergy(net, 2.0, (1,), blur=0.0), "width in patches above 0"),
        (lambda: SkipLayer(net, 2.0, (1,), interval=(1.0, 0.0)), "interval"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
