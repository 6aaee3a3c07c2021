"""Cached composition: weights, schedule, what runs, and the order of adapters by frequency."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gen.adapters import Adapter, Adapters, Delta
from samplers import Condition, Context, NetworkDenoiser, get_grid, get_solver, sample
from samplers.composition import CachedComposite, Composite, frequency, frequency_order
from samplers.composition.cached import Plan, plan, refresh_steps, shares
from samplers.guidance import ClassifierFree
from samplers.hooks import with_hook
from tests.gen.test_hooks import tiny
from tests.samplers.adapted import FLOW, Adapted, randn

X = randn(2, 3, 4, 4)
LABELS = Condition(label=torch.tensor([0, 2]))
LEVELS = get_grid("karras", FLOW, 8)
WEIGHTS = {"a": 0.8, "b": 1.0, "c": 0.5}
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def network(kind="dit", depth=5):
    """A tiny network with three adapters on every block's MLP."""
    net = tiny(kind, depth=depth, num_classes=3)
    adapters = Adapters(net)
    inputs = {n: m.in_features for n, m in net.named_modules() if n.endswith("mlp.fc1")}
    for i, name in enumerate(WEIGHTS):
        layers = {
            f"denoiser.{n}": Delta({"down": randn(2, width, seed=9 * i + k), "up": randn(64, 2, seed=50 + 9 * i + k) / 3})
            for k, (n, width) in enumerate(inputs.items())
        }
        adapters.load(Adapter(name, layers))
    return NetworkDenoiser(net, FLOW, "flow")


class Blocks:
    """The (block, rows) that really run, as the hook nearest to the network."""

    def __init__(self):
        self.ran = []

    def context(self):
        def hook(index, count, x, run):
            self.ran.append((index, len(x)))
            return run()

        return with_hook(Context(adapters=WEIGHTS), "block", hook)


def run(denoiser, context=None, x=X, condition=LABELS, levels=LEVELS):
    context = context or Context(adapters=WEIGHTS)
    return sample(denoiser, get_solver("euler"), x, levels, condition, context=context)


def test_weights_sum_to_the_number_of_adapters():
    assert (
        shares(2) == pytest.approx((1.2, 0.8))
        and shares(2, 5, 1.0) == shares(2)
        and shares(3) == pytest.approx((5 / 3, 2 / 3))
        and shares(1) == (1.0, 1.0)
    )
    for count in (1, 2, 3, 7):
        for turn in range(6):
            most, other = shares(count, turn)
            assert most + (count - 1) * other == pytest.approx(count, abs=1e-12) and other > 0
            if count > 1:  # c 0.5^turn
                assert most / other == pytest.approx((count - 0.5) * 0.5**turn)


def test_the_schedule_is_the_published_one():
    for steps in (8, 20, 50, 220):
        a, b = int(0.375 * steps), int(0.875 * steps)
        assert refresh_steps(steps) == (*range(0, a, 2), *range(a, b, 3), *range(b, steps, 2))
    assert refresh_steps(6, ((0.0, 1),)) == tuple(range(6))
    levels = get_grid("karras", FLOW, 22)
    made = plan(("fine", "finer", "coarse"), levels)
    at = refresh_steps(22)
    assert made.refreshes == tuple(levels[i].logsnr for i in at)
    early = [leader for i, leader in zip(at, made.leaders, strict=True) if i < 12]
    assert early == ["fine", "finer"] * 3 and set(made.leaders[len(early) :]) == {"coarse"}


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_refreshed_at_every_step_it_is_a_weighted_composite(kind):
    net = network(kind)
    every = CachedComposite(net, plan(("c", "a", "b"), LEVELS, ((0.0, 1),)))

    class Weighted:
        path = FLOW

        def __call__(self, x, level, condition, context):
            leader = every.plan.leaders[context.step]
            most, other = shares(3, context.step)
            return Composite(net, {n: most if n == leader else other for n in WEIGHTS})(x, level, condition, context)

    got, want = run(every), run(Weighted())
    torch.testing.assert_close(got, want, **CLOSE)
    even = run(Composite(net))
    lasting = CachedComposite(net, every.plan, decay=1.0)
    assert (got - even).abs().max() > 1e-4 and (run(lasting) - got).abs().max() > 1e-4


@pytest.mark.parametrize(("kind", "guided"), [("dit", False), ("uvit", True)])
def test_what_runs_is_as_stated(kind, guided):
    """All adapters run all five blocks at a refresh; else the leader all, and the others their outer two."""
    blocks, net = Blocks(), network(kind)
    cached = CachedComposite(net, plan(tuple(WEIGHTS), LEVELS))
    context = blocks.context()
    run(ClassifierFree(cached, 2.0) if guided else cached, context)
    rows, at = len(X) * (1 + guided), refresh_steps(8)
    full = [(i, 3 * rows) for i in range(5)]
    between = [(i, rows) for i in range(5)] + [(0, 2 * rows), (4, 2 * rows)]
    assert at == (0, 2, 3, 6, 7)
    assert blocks.ran == [one for step in range(8) for one in (full if step in at else between)]
    assert context.evaluations == 8 * 3 * rows


def test_between_refreshes_deep_blocks_repeat_what_they_added():
    """Against the same written out: every adapter alone, its middle blocks replaced by what they added at the refresh."""
    net, level, later = network(), FLOW(0.7), FLOW(0.6)
    cached = CachedComposite(net, Plan((level.logsnr,), ("b",)), shallow=2)
    context = Context(adapters=WEIGHTS, steps=2)
    cached(X, level, LABELS, context.at(0))
    y = X + 0.1 * randn(*X.shape, seed=5)
    got = cached(y, later, LABELS, context.at(1)).raw

    def alone(name, x, at, added=None):
        middle = {}

        def hook(index, count, tokens, run):
            if index != 2:
                return run()
            out = run() if added is None else tokens + added
            middle["added"] = out - tokens
            return out

        own = with_hook(Context(adapters={name: WEIGHTS[name]}), "block", hook)
        return net(x, at, LABELS, own).raw, middle["added"]

    added = {name: alone(name, X, level)[1] for name in WEIGHTS}
    most, other = shares(3)
    parts = {name: alone(name, y, later, None if name == "b" else added[name])[0] for name in WEIGHTS}
    want = (most * parts["b"] + other * (parts["a"] + parts["c"])) / 3
    torch.testing.assert_close(got, want, **CLOSE)
    fresh = (most * parts["b"] + other * (alone("a", y, later)[0] + alone("c", y, later)[0])) / 3
    assert (got - fresh).abs().max() > 1e-3
    torch.testing.assert_close(cached(y, later, LABELS, context.at(1)).raw, got, rtol=0, atol=0)  # a repeated step is the same


def test_a_picture_does_not_depend_on_those_beside_it_nor_branches_on_each_other():
    net = network()
    cached = CachedComposite(net, plan(tuple(WEIGHTS), LEVELS), decay=0.5)
    together = run(ClassifierFree(cached, 3.0))
    for i in range(2):
        one = run(ClassifierFree(cached, 3.0), x=X[i : i + 1], condition=LABELS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], one, **CLOSE)
    outside = run(CachedComposite(ClassifierFree(net, 3.0), cached.plan, decay=0.5))
    torch.testing.assert_close(together, outside, **CLOSE)
    part = (LEVELS[1].logsnr - 0.1, LEVELS[6].logsnr - 0.1)  # guidance that begins and ends between refreshes
    assert run(CachedComposite(ClassifierFree(net, 3.0, interval=part), cached.plan)).isfinite().all()


def test_one_adapter_and_none():
    net = network()
    cached = CachedComposite(net, Plan((-math.inf,), ("a",)))
    only = Context(adapters={"a": 0.8})
    assert torch.equal(run(cached, only), run(net, replace(only, store={})))


def test_errors_say_what_is_wrong():
    net = network(depth=1)
    with pytest.raises(ValueError, match="this network has 1; give a smaller shallow"):
        run(CachedComposite(net, plan(tuple(WEIGHTS), LEVELS)))
    with pytest.raises(ValueError, match="works through the network's 'block' hook"):
        run(CachedComposite(Adapted(width=4), plan(tuple(WEIGHTS), LEVELS)))
    with pytest.raises(ValueError, match="'z', which is not in force"):
        run(CachedComposite(net, plan(("z",), LEVELS)))
    for make, why in (
        (lambda: Plan((0.0, 0.0), ("a", "b")), "values that rise"),
        (lambda: Plan((0.0,), ()), "one leader per refresh"),
        (lambda: plan((), LEVELS), "at least one in force"),
        (lambda: refresh_steps(9, ((0.5, 2),)), "rising from 0"),
        (lambda: CachedComposite(net, Plan((0.0,), ("a",)), shallow=0), "at least 1"),
        (lambda: CachedComposite(net, Plan((0.0,), ("a",)), decay=2.0), "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=why):
            make()


SIZES = [(8, 8), (33, 20), (64, 64), (96, 96), (128, 128)]


def waves(size, cycles):
    """cos of `cycles` whole waves down the picture."""
    rows = torch.arange(size[0], dtype=torch.float64) / size[0]
    return torch.cos(2 * math.pi * cycles * rows)[:, None].expand(size)


@pytest.mark.parametrize("size", SIZES)
def test_frequency_is_in_units_of_nyquist(size):
    for cycles in (1, 3):
        assert frequency(waves(size, cycles)).item() == pytest.approx(2 * cycles / size[0], rel=1e-9)
    assert frequency(torch.ones(size)).item() < 1e-5 and frequency(torch.zeros(2, *size)).tolist() == [0, 0]
    board = (-1.0) ** torch.arange(8, dtype=torch.float64)
    assert frequency(board[:, None] * board).item() == pytest.approx(math.sqrt(2))


def published_profile(change):
    """The mean of a radial profile from bin 80 on, which is empty in a small picture."""
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(change)))
    rows, columns = (np.arange(n) - n // 2 for n in change.shape)
    radius = np.hypot(rows[:, None], columns).astype(int)
    profile = np.array([amplitude[radius == r].mean() for r in range(radius.max() + 1)])
    tail = (profile / profile.max())[80:]
    return tail.mean() if len(tail) else math.nan


@pytest.mark.parametrize("size", SIZES)
def test_adapters_are_ordered_from_fine_to_coarse_at_every_resolution(size):
    """Adapters that low-pass and high-pass the picture, at bounds in Nyquist units."""
    bounds = {"low": (0.0, 0.3), "middle": (0.3, 0.7), "high": (0.7, 2.0)}
    rows, columns = (2 * torch.fft.fftfreq(n, dtype=torch.float64) for n in size)
    radius = (rows[:, None] ** 2 + columns**2).sqrt()

    class Filters(Adapted):
        def __call__(self, x, level, condition, context):
            plain = super().__call__(x, level, condition, replace(context, adapters=[{}] * len(x)))
            raw = plain.raw.clone()
            for i, row in enumerate(context.adapters):
                for name in row:
                    low, high = bounds[name]
                    raw[i] += torch.fft.ifft2(torch.fft.fft2(x[i]) * ((radius >= low) & (radius < high))).real
            return plain.with_raw(raw)

    x, net = randn(1, 1, *size), Filters(width=size[1])
    context = Context(adapters={"middle": 1.0, "low": 1.0, "high": 1.0})
    assert frequency_order(net, x, FLOW(0.5), Condition(), context) == ("high", "middle", "low")
    assert frequency_order(net, x, FLOW(0.5), Condition(), context, ["low", "high"]) == ("high", "low")
    assert math.isnan(published_profile(x[0, 0].numpy())) == (size != (128, 128))
