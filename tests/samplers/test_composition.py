"""Merge, switch and composite: against one adapter at a time, evaluated one after another."""

import math
from dataclasses import replace

import pytest
import torch

from samplers import Condition, Context, get_grid, get_solver, sample
from samplers.composition import COMPOSITIONS, Composite, Contrast, Switch, composition_info, get_composition, taking_turns
from samplers.guidance import ClassifierFree
from tests.samplers.adapted import FLOW, NAMES, Adapted, randn

X = randn(2, 3, 6, 6)
LABELS = Condition(label=torch.tensor([0, 3]))
WEIGHTS = {"a": 0.8, "b": 1.0, "c": -0.5}
LEVEL = FLOW(0.6)
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


def alone(denoiser, name, weights=WEIGHTS, level=LEVEL):
    return denoiser(X, level, LABELS, Context(adapters={name: weights[name]})).raw


def call(denoiser, weights=WEIGHTS, level=LEVEL, condition=LABELS):
    return denoiser(X, level, condition, Context(adapters=weights))


def test_a_composite_is_the_mean_of_every_adapter_alone():
    net = Adapted()
    expected = torch.stack([alone(net, name) for name in WEIGHTS]).mean(0)
    net.seen.clear()
    context = Context(adapters=WEIGHTS)
    prediction = Composite(net)(X, LEVEL, LABELS, context)
    torch.testing.assert_close(prediction.raw, expected, **CLOSE)
    assert prediction.row == call(net).row and torch.equal(prediction.x, X)
    assert len(net.seen) == 2 and net.seen[0] == [{n: w} for n, w in WEIGHTS.items() for _ in X]  # one batch of all
    assert context.evaluations == 3 * len(X)
    shares = torch.stack([s * alone(net, n) for n, s in (("a", 1), ("b", 3), ("c", 0))]).sum(0) / 4
    torch.testing.assert_close(call(Composite(net, {"b": 3.0, "c": 0.0})).raw, shares, **CLOSE)


def test_one_adapter_is_itself_and_copies_of_one_are_one():
    net = Adapted()
    for wrapped in (Composite(net), Switch(net, ((-math.inf, "b"),))):
        assert torch.equal(call(wrapped, {"b": 0.7}).raw, call(net, {"b": 0.7}).raw)
        assert torch.equal(call(wrapped, {"a": 0.0, "b": 0.7}).raw, call(net, {"b": 0.7}).raw)
    assert torch.equal(call(Composite(net), {}).raw, call(net, {}).raw)

    class Copies(Adapted):
        def change(self, name):
            return super().change("a")

    copies = Copies()
    torch.testing.assert_close(call(Composite(copies), dict.fromkeys("abc", 0.8)).raw, alone(copies, "a"), **CLOSE)


def test_mean_then_guidance_is_guidance_then_mean():
    net = Adapted()
    inside, outside = ClassifierFree(Composite(net), 4.0), Composite(ClassifierFree(net, 4.0))
    torch.testing.assert_close(call(inside).raw, call(outside).raw, **CLOSE)
    expected = torch.stack([call(ClassifierFree(net, 4.0), {n: w}).raw for n, w in WEIGHTS.items()]).mean(0)
    torch.testing.assert_close(call(inside).raw, expected, **CLOSE)
    net.seen.clear()
    call(inside), call(outside)
    assert [len(rows) for rows in net.seen] == [12, 12]


def test_a_contrast_weighs_every_adapter_against_the_model_without_it():
    net = Adapted()
    rest, a, b = (call(net, {n: WEIGHTS[n] for n in names}).raw for names in ("c", "ac", "bc"))
    got = call(Contrast(net, {"a": 2.0, "b": 0.5})).raw
    torch.testing.assert_close(got, rest + 2.0 * (a - rest) + 0.5 * (b - rest), rtol=1e-12, atol=1e-12)
    assert torch.equal(call(Contrast(net, {"a": 1.0, "b": 0.0})).raw, a)
    torch.testing.assert_close(call(Contrast(net, {"a": 0.0, "b": 0.0})).raw, rest, **CLOSE)
    even = call(Contrast(net, dict.fromkeys("abc", 1 / 3))).raw
    torch.testing.assert_close(even, call(Composite(net)).raw, **CLOSE)
    built = get_composition("contrast", net, {"a": 0.8}, get_grid("karras", FLOW, 3), strengths=3.0)
    plain = call(net, {}).raw
    want = plain + 3 * (call(net, {"a": 0.8}).raw - plain)
    torch.testing.assert_close(call(built, {"a": 0.8}).raw, want, rtol=1e-12, atol=1e-12)


def test_merged_is_neither():
    """Three adapters at once are another network than their mean, and far from each of them where they disagree."""
    net = Adapted()
    merged, mean = call(net).raw, call(Composite(net)).raw
    errors = [max((alone(net, n) - out).norm() for n in WEIGHTS) for out in (merged, mean)]
    assert errors[1] < 0.8 * errors[0]


def order(turns, levels):
    """The adapter of every step, read from a run."""
    net = Adapted()
    sample(Switch(net, turns), get_solver("euler"), X, levels, LABELS, context=Context(adapters=dict.fromkeys(NAMES, 1.0)))
    return ["".join(rows[0]) for rows in net.seen]


def reference_callback(names, every, steps):
    """What a callback at the end of step i makes of it, if it moves on when i > 0 and i mod every = 0."""
    active, found = 0, []
    for i in range(steps):
        found.append(names[active])
        if i > 0 and i % every == 0:
            active = (active + 1) % len(names)
    return found


@pytest.mark.parametrize("grid", ["karras", "uniform"])
def test_adapters_take_turns_of_so_many_steps(grid):
    levels = get_grid(grid, FLOW, 18)
    expected = [("a", "b", "c")[i // 5 % 3] for i in range(18)]
    assert order(taking_turns(("a", "b", "c"), levels, 5), levels) == expected
    assert expected[:6] == ["a"] * 5 + ["b"] and expected[15] == "a"
    assert reference_callback("abc", 5, 18) != expected  # its first turn has 6 steps
    assert order(taking_turns(("d",), levels, 3), levels) == ["d"] * 18


def test_turns_are_a_matter_of_noise_levels():
    """A solver that looks ahead uses the adapter of the level it looks at; samples of a batch may stand at different levels."""
    turns, net = ((-1.0, "a"), (0.0, "b"), (1.0, "c")), Adapted()
    names = {}
    for logsnr in (-math.inf, -2.0, -1.0, -0.001, 0.0, 0.9, 1.0, math.inf):
        call(Switch(net, turns), level=FLOW.at_logsnr(logsnr))
        names[logsnr] = "".join(net.seen[-1][0])
    assert list(names.values()) == list("aaaabbcc")
    level = FLOW.at_logsnr(torch.tensor([-2.0, 0.5], dtype=torch.float64))
    call(Switch(net, turns), level=level)
    assert net.seen[-1] == [{"a": 0.8}, {"b": 1.0}]
    net.seen.clear()
    levels = get_grid("karras", FLOW, 4)
    turns = taking_turns(("a", "b"), levels, 1)
    sample(Switch(net, turns), get_solver("heun"), X, levels, LABELS, context=Context(adapters={"a": 1.0, "b": 1.0}))
    assert ["".join(rows[0]) for rows in net.seen] == list("abbaabb")


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_any_solver_runs_any_composition(solver):
    """A whole run of the batched composite is the run of the mean written out."""

    class Mean:
        path = FLOW

        def __init__(self, net):
            self.net = net

        def __call__(self, x, level, condition, context):
            each = [self.net(x, level, condition, replace(context, adapters={n: w})) for n, w in WEIGHTS.items()]
            return each[0].with_raw(sum(p.raw for p in each) / len(each))

    levels = get_grid("karras", FLOW, 5)
    net, context = Adapted(), Context(adapters=WEIGHTS)
    got = sample(ClassifierFree(Composite(net), 2.0), get_solver(solver), X, levels, LABELS, context=context)
    want = sample(ClassifierFree(Mean(net), 2.0), get_solver(solver), X, levels, LABELS)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_the_table_builds_what_it_says():
    levels, net = get_grid("karras", FLOW, 12), Adapted()
    assert (
        list(COMPOSITIONS) == ["merge", "switch", "composite", "contrast", "cached"]
        and composition_info("CMLoRA").name == "cached"
    )
    assert get_composition("merge", net, WEIGHTS, levels) is net
    assert get_composition("composite", net, {"a": 1.0, "b": 0.0}, levels) is net  # one is nothing to compose
    assert get_composition("switch", net, WEIGHTS, levels, every=4).turns == taking_turns(tuple(WEIGHTS), levels, 4)
    cached = get_composition("cached", net, WEIGHTS, levels, order=(2, 0, 1), stride=3, decay=0.5)
    assert cached.plan.leaders == ("c", "a", "c", "b") and cached.decay == 0.5  # steps 0, 3, 6 | 9


def test_errors_say_what_is_wrong():
    levels, net = get_grid("karras", FLOW, 4), Adapted()
    for weights in ([{"a": 1.0}, {}], {"a": [1.0, 0.5]}):
        with pytest.raises(ValueError, match="one weight per adapter"):
            call(Composite(net), weights)
    with pytest.raises(ValueError, match=r"'aa', which is not in force; in force: a, b, c\. Did you mean 'a'"):
        call(Switch(net, ((0.0, "aa"),)))
    with pytest.raises(ValueError, match="'x', which is not in force"):
        call(Composite(net, {"x": 1.0}))
    for make, why in (
        (lambda: Switch(net, ()), "no turns"),
        (lambda: Switch(net, ((0.0, "a"), (0.0, "b"))), "values that rise"),
        (lambda: Contrast(net, {}), "at least one adapter"),
        (lambda: get_composition("contrast", net, WEIGHTS, levels, strengths=(1.0,)), "1 numbers for 3 adapters"),
        (lambda: taking_turns((), levels), "at least one in force"),
        (lambda: taking_turns(("a",), levels, 0), "at least 1"),
        (lambda: Composite(net, {"a": -1.0}), "at least 0"),
        (lambda: call(Composite(net, dict.fromkeys("abc", 0.0))), "All shares"),
        (lambda: get_composition("switsch", net, WEIGHTS, levels), "did you mean 'switch'"),
        (lambda: get_composition("merge", net, WEIGHTS, levels, every=3), "takes none"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, order=(0, 1)), "positions 0 to 2"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, order=(0, 1.0, 2)), "positions 0 to 2"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, order="abc"), "several values as order"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, stride="2"), "a whole number as stride"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, stride=1.5), "a whole number as stride"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, fine_until="x"), "a number as fine_until"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, decay="x"), "a number as decay"),
        (lambda: get_composition("cached", net, WEIGHTS, levels, shallow=(1, 2)), "a whole number as shallow"),
        (lambda: get_composition("contrast", net, WEIGHTS, levels, strengths="abc"), "several values or a number as strengths"),
        (lambda: get_composition("switch", net, WEIGHTS, levels, every="2"), "a whole number as every"),
    ):
        with pytest.raises(ValueError, match=why):
            make()
