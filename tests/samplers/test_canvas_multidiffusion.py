"""The tiled canvas: exact where the network looks at single pixels, the mean of the windows' own steps where it does not."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from samplers import (
    Condition,
    Context,
    NetworkDenoiser,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_cache,
    get_grid,
    get_guidance,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.anytime import anytime
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.windows import Windows
from samplers.guidance.universal import Universal
from tests.distill.processes import on_processes
from tests.samplers.canvases import LookAround, PerPixel, draw

VE, VP, RF = VarianceExploding(0.02, 20.0), VariancePreserving.linear(), RectifiedFlow()
LABELS = Condition(label=torch.tensor([1, -1]))


def run(denoiser, solver, size, condition=LABELS, steps=5, context=None):
    levels = get_grid("karras", denoiser.path, steps)
    x = levels[0].sigma * draw(2, 3, *size)
    solver = get_solver(solver) if isinstance(solver, str) else solver
    return sample(denoiser, solver, x, levels, condition, noise=seeded_noise([1, 2], x), context=context)


def tiled(denoiser, size, window=(16, 8), stride=(9, 3), profile="cosine", wrap=(False, False), **options):
    return MultiDiffusion(denoiser, Windows.regular(size, window, stride, profile, wrap), **options)


@pytest.mark.parametrize(
    ("solver", "path", "kind", "size", "profile", "wrap", "batch"),
    [
        ("euler", VP, "eps", (41, 23), "flat", (False, False), 8),
        ("heun", VE, "x0", (16, 41), "linear", (False, True), 1),
        ("dpmpp_2m", RF, "flow", (41, 8), "cosine", (True, False), 6),
        ("dpmpp_3m_sde", VP, "v", (17, 9), "gaussian", (True, True), 64),
        ("unipc", RF, "x0", (40, 41), "cosine", (False, False), 5),
    ],
)
def test_any_overlap_of_a_per_pixel_denoiser_is_the_whole_canvas(solver, path, kind, size, profile, wrap, batch):
    denoiser = PerPixel(path, kind)
    whole = run(denoiser, solver, size)
    parts = run(tiled(denoiser, size, profile=profile, wrap=wrap, batch=batch), solver, size)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-13)


def test_the_order_of_windows_changes_nothing():
    canvas = tiled(LookAround(RF), (20, 30))
    shuffled = [canvas.windows.corners[i] for i in torch.randperm(len(canvas.windows)).tolist()]
    other = replace(canvas, windows=replace(canvas.windows, corners=tuple(shuffled)), batch=14)
    torch.testing.assert_close(run(canvas, "dpmpp_2m", (20, 30)), run(other, "dpmpp_2m", (20, 30)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "dpmpp_3m_sde"])
def test_a_step_of_the_canvas_is_the_mean_of_the_windows_own_steps(solver):
    """With a solver, history and all, for every window: the published algorithm."""
    size, denoiser, solver = (16, 29), LookAround(VP, "eps"), get_solver(solver)
    canvas = tiled(denoiser, size)
    windows, levels = canvas.windows, get_grid("karras", VP, 5)
    x = levels[0].sigma * draw(2, 3, *size)
    noise, states = seeded_noise([1, 2], x), [solver.init(windows.crop(x, (i,))) for i in range(len(windows))]
    for step, (s, t) in enumerate(pairwise(levels)):
        total = torch.zeros_like(x)
        for i, state in enumerate(states):

            def draws(s, t, i=i):
                return windows.crop(noise(s, t), (i,))

            state = replace(state, x=windows.crop(x, (i,)), level=s, step=step)
            states[i] = solver.step(denoiser, state, s, t, LABELS, Context(step=step, steps=5), draws)
            windows.add(total, states[i].x * windows.weights, i)
        x = total / windows.total
    torch.testing.assert_close(run(canvas, solver, size), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("shift", "wrap"), [((0, 9), (False, True)), ((8, 3), (True, True))])
def test_a_circular_canvas_commutes_with_a_roll(shift, wrap):
    size, levels = (16, 24), get_grid("karras", RF, 4)
    canvas = tiled(LookAround(RF), size, (8, 8), (4, 3), wrap=wrap)
    x = draw(2, 3, *size)
    first = sample(canvas, get_solver("dpmpp_2m"), x, levels)
    rolled = sample(canvas, get_solver("dpmpp_2m"), x.roll(shift, (2, 3)), levels)
    torch.testing.assert_close(rolled, first.roll(shift, (2, 3)), rtol=0, atol=1e-13)
    flat = sample(tiled(LookAround(RF), size, (8, 8), (4, 3)), get_solver("dpmpp_2m"), x, levels)
    assert (flat - first).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "options"), [("cfg", {}), ("cfgpp", {}), ("apg", {}), ("cfg + rescale", {"factor": 0.7})], ids=str
)
def test_guidance_inside_keeps_its_branches(name, options):
    """Rules per window equal rules on the whole canvas where one window is all of it; CFG++ reads both branches."""
    size, (rule, *modifiers) = (16, 20), name.split(" + ")
    scale = 0.7 if rule == "cfgpp" else 3.0
    plain, solver = get_guidance(rule, PerPixel(RF), get_solver("euler"), scale=scale)
    for modifier in modifiers:
        plain, solver = get_guidance(modifier, plain, solver, **options)
    condition = Condition(label=torch.tensor([1, 2]))
    whole = run(MultiDiffusion(plain, Windows.regular(size, size, size)), solver, size, condition)
    torch.testing.assert_close(whole, run(plain, solver, size, condition), rtol=0, atol=1e-12)
    if rule in ("cfg", "cfgpp") and not modifiers:  # these are per pixel
        parts = run(tiled(plain, size), solver, size, condition)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_a_negative_condition_of_the_batch_serves_all_windows():
    negative = Condition(label=torch.tensor([2, -3]))
    field, solver = get_guidance("cfg", PerPixel(RF), get_solver("euler"), scale=3.0, negative=negative)
    whole, parts = run(field, solver, (16, 20)), run(tiled(field, (16, 20), batch=5), solver, (16, 20))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    other, _ = get_guidance("cfg", PerPixel(RF), solver, scale=3.0)
    assert (run(other, solver, (16, 20)) - whole).abs().max() > 0.01


@pytest.mark.parametrize(("name", "options"), [("reuse", {"stride": 2}), ("easy", {"threshold": 0.0})])
def test_caches_inside_remember_every_window_apart(name, options):
    size, context = (16, 29), Context()
    cached = get_cache(name, PerPixel(RF), **options)
    whole = run(cached, "dpmpp_2m", size, steps=8)
    parts = run(tiled(cached, size, batch=4), "dpmpp_2m", size, steps=8, context=context)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    assert context.evaluations == 2 * 8 * (4 if name == "reuse" else 8)


def test_a_gradient_through_the_canvas_is_that_of_the_whole():
    size, wrap, eye = (16, 20), (True, True), torch.linspace(-1, 1, 20, dtype=torch.float64)

    def energy(x0, condition):
        return -(x0 * eye - 0.3).square().sum((1, 2, 3))

    whole = run(Universal(PerPixel(VP), energy, 0.3), "euler", size)
    parts = run(Universal(tiled(PerPixel(VP), size, wrap=wrap), energy, 0.3), "euler", size)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-11)
    assert (run(PerPixel(VP), "euler", size) - whole).abs().max() > 0.01


def test_windows_may_answer_in_different_rows():
    """A cache gives some windows x0 and others what the network says: the blend reads both in one row."""

    class Mixed(PerPixel):
        def __call__(self, x, level, condition, context):
            kind = ("x0", "eps", "v")[context.view[1][0] % 3]
            return PerPixel(self.path, kind)(x, level, condition, context)

    whole, parts = PerPixel(VP), tiled(Mixed(VP), (16, 29), batch=2)
    torch.testing.assert_close(run(parts, "dpmpp_2m", (16, 29)), run(whole, "dpmpp_2m", (16, 29)), rtol=0, atol=1e-12)


def test_faded_weights_leave_no_step_at_the_border():
    """Windows that disagree: flat weights jump where one begins, the others go from one to the next."""

    def level_of(x, time, condition, context):
        return x.mean((1, 2, 3), keepdim=True).expand_as(x)

    x, found = draw(200, 1, 8, 24), {}
    for profile in ("flat", "linear", "cosine"):
        canvas = tiled(NetworkDenoiser(level_of, RF, prediction="x0"), (8, 24), (8, 8), (8, 4), profile)
        step = canvas(x, RF(0.5), Condition(), Context()).x0.diff(dim=-1).abs().mean((0, 1, 2))
        found[profile] = (step[[3, 7, 11, 15, 19]].mean() / step.mean()).item()  # into columns 4, 8, ... over everywhere
    assert found["flat"] > 4 and abs(found["linear"] - 1) < 0.15 and found["cosine"] < 0.7


def test_every_window_has_its_own_condition_and_crop():
    """One window after the other by hand, at one level, against the blend; the solver's own word reaches all of them."""
    size, level, x = (16, 22), RF(0.6), draw(2, 3, 16, 22)
    image = draw(2, 3, *size, seed=1)
    conditions = [Condition(label=torch.tensor([k]), image=image) for k in (0, 1, 2)]
    windows = Windows.regular(size, (16, 8), (16, 3))
    chosen = [2, 0, 1, 0, 2, 1]
    seen = []

    class Spy(LookAround):
        def __call__(self, x, level, condition, context):
            seen.append((len(x), condition))
            return super().__call__(x, level, condition, context)

    told = Condition(extra={"target_time": torch.tensor([0.1, 0.2])})
    got = MultiDiffusion(Spy(RF), windows, conditions, chosen, batch=4)(x, level, told, Context()).x0
    total = torch.zeros_like(x)
    for i, k in enumerate(chosen):
        label = torch.tensor([k, k])
        own = Condition(label=label, image=windows.crop(image, (i,)))
        total_i = LookAround(RF)(windows.crop(x, (i,)), level, own, Context()).x0
        windows.add(total, total_i * windows.weights, i)
    torch.testing.assert_close(got, total / windows.total, rtol=0, atol=1e-14)
    assert [rows for rows, _ in seen] == [4, 4, 4]
    assert all(torch.equal(c.extra["target_time"], told.extra["target_time"].repeat(2)) for _, c in seen)
    assert [c.label.tolist() for _, c in seen] == [[0] * 4, [1] * 4, [2] * 4]  # equal conditions go together


def test_evaluations_are_the_windows_and_memos_are_shared():
    """What a network keeps of its condition is made once for a size of batch, not once per step and window."""
    made, sizes = Counter(), Counter()

    def network(x, time, condition, context):
        sizes[len(x)] += 1
        context.memo("text", (condition,), lambda: made.update([len(x)]))
        return x * condition.label.reshape(-1, 1, 1, 1)

    field, solver = get_guidance("cfg", NetworkDenoiser(network, RF), get_solver("heun"), scale=3.0)
    for width, count in ((8, 1), (20, 5), (44, 13)):
        made.clear(), sizes.clear()
        context = Context()
        canvas = tiled(field, (16, width), batch=8)
        assert len(canvas.windows) == count
        run(canvas, solver, (16, width), context=context)
        assert context.evaluations == 2 * 2 * 9 * count  # pictures, branches, Heun's evaluations in 5 steps, windows
        assert max(sizes) <= 2 * 8 and len(made) <= 2 and set(made.values()) == {1}


class LiveBytes(TorchFunctionMode):
    """The most bytes of tensors that were alive at once."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = {}, 0, 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            store = value.untyped_storage() if isinstance(value, torch.Tensor) else None
            if store is not None and store._cdata not in self.known:
                self.known[store._cdata] = store.nbytes()
                self.now += store.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(store, self._gone, store._cdata)
        return result

    def _gone(self, key):
        self.now -= self.known.pop(key, 0)


def test_memory_grows_with_the_windows_at_once_and_not_with_the_canvas():
    wide = torch.randn(128, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 5

    def network(x, time, condition, context):
        return torch.nn.functional.conv_transpose2d(torch.nn.functional.conv2d(x, wide, padding=1).relu(), wide, padding=1)

    def peak(side, batch):
        canvas = tiled(NetworkDenoiser(network, RF), (side, side), (8, 8), (8, 4), batch=batch)
        levels, x = get_grid("karras", RF, 2), torch.randn(1, 3, side, side)
        with LiveBytes() as live:
            sample(canvas, get_solver("dpmpp_2m"), x, levels)
        return live.peak

    image = 3 * 8 * 8 * 4
    small, large, batched = peak(16, 2), peak(64, 2), peak(64, 8)
    assert small > 2 * 128 / 3 * image  # the activations of two windows
    assert large - small < 10 * (64 - 4) * image  # some copies of the image: state, history, sums, weights
    assert 6 / 2 * 0.9 < (batched - large) / (2 * 2 * 128 / 3 * image) < 6 / 2 * 1.1  # two activations of six windows more


def _rank(expected, corners):
    dist.init_process_group("gloo")
    canvas = tiled(LookAround(RF), (16, 29), batch=4, group=dist.group.WORLD)
    canvas = replace(canvas, windows=replace(canvas.windows, corners=corners))
    context = Context()
    field, solver = get_guidance("cfgpp", canvas.denoiser, get_solver("heun"), scale=0.6)
    got = run(replace(canvas, denoiser=field), solver, (16, 29), context=context)
    torch.testing.assert_close(got, expected[0], rtol=0, atol=1e-12)
    assert context.evaluations == expected[1]


@pytest.mark.parametrize("count", [8, 1], ids=["several windows", "one window for two ranks"])
def test_windows_over_two_processes_are_those_of_one(count):
    canvas, context = tiled(LookAround(RF), (16, 29)), Context()
    if count == 1:
        canvas = MultiDiffusion(canvas.denoiser, Windows((16, 29), (16, 29), ((0, 0),)))
    assert len(canvas.windows) == count
    field, solver = get_guidance("cfgpp", canvas.denoiser, get_solver("heun"), scale=0.6)
    got = run(replace(canvas, denoiser=field), solver, (16, 29), context=context)
    on_processes(2, _rank if count == 8 else _rank_of_one, (got, context.evaluations), canvas.windows.corners)


def _rank_of_one(expected, corners):
    dist.init_process_group("gloo")
    field, solver = get_guidance("cfgpp", LookAround(RF), get_solver("heun"), scale=0.6)
    context = Context()
    canvas = MultiDiffusion(field, Windows((16, 29), (16, 29), corners), group=dist.group.WORLD)
    torch.testing.assert_close(run(canvas, solver, (16, 29), context=context), expected[0], rtol=0, atol=1e-12)
    assert context.evaluations == 2 * expected[1]  # the idle rank evaluates as well
    with pytest.raises(ValueError, match="have no gradients"), torch.enable_grad():
        canvas(draw(1, 3, 16, 29).requires_grad_(), RF(0.5), Condition(label=torch.tensor([1])), Context())


def test_nested_sampling_has_a_finished_canvas_at_every_moment():
    size, levels = (16, 29), get_grid("karras", RF, 3)
    x, canvas = draw(2, 3, *size), tiled(PerPixel(RF, "x0"), (16, 29))
    runs = [
        list(anytime(d, get_solver("dpmpp_2m"), x, levels, LABELS, inner_steps=3, noise=seeded_noise([1, 2], x)))
        for d in (PerPixel(RF, "x0"), canvas)
    ]
    for whole, parts in zip(*runs, strict=True):
        assert parts.level.sigma == 0 and parts.evaluations == len(canvas.windows) * whole.evaluations
        torch.testing.assert_close(parts.x, whole.x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "at least 1, got batch=0"),
        ({"conditions": [Condition()], "chosen": [0]}, "8 windows, and 1 of them"),
        ({"conditions": [Condition()], "chosen": [0, 1] * 4}, "choose conditions 0 to 0"),
    ],
)
def test_errors_are_sentences(options, message):
    with pytest.raises(ValueError, match=message):
        tiled(PerPixel(RF), (16, 29), **options)
    with pytest.raises(ValueError, match="make them for its size"):
        tiled(PerPixel(RF), (16, 29))(draw(1, 3, 16, 28), RF(0.5), Condition(), Context())
