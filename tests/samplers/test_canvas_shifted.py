"""Shifted windows: every pixel covered at every offset, no place a border, exact where the network looks at single pixels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import (
    Condition,
    Context,
    NetworkDenoiser,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_cache,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.shifted import ShiftedWindows, WindowsPerImage
from samplers.canvas.sync_diffusion import SyncDiffusion
from samplers.canvas.windows import Windows
from samplers.sample import State, trajectory
from tests.distill.processes import on_processes
from tests.samplers.canvases import LookAround, PerPixel, draw

VE, VP, RF = VarianceExploding(0.02, 20.0), VariancePreserving.linear(), RectifiedFlow()
LABELS = Condition(label=torch.tensor([1, -1]))


def shifted(size, window=(16, 8), stride=(9, 3), profile="linear", wrap=(False, False), seeds=(1, 2)):
    return ShiftedWindows(size, window, stride, profile, wrap, seeds)


def run(denoiser, solver, size, condition=LABELS, steps=5, context=None, seeds=(1, 2)):
    levels = get_grid("karras", denoiser.path, steps)
    x = torch.cat([draw(1, 3, *size, seed=seed) for seed in seeds]) * levels[0].sigma
    return sample(denoiser, get_solver(solver), x, levels, condition, noise=seeded_noise(seeds, x), context=context)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 15), st.integers(1, 15), st.booleans(), st.integers(0, 2**31))
def test_every_offset_covers_every_pixel_with_equally_many_windows(length, window, stride, wrap, seed):
    window = min(window, length)
    stride = min(stride, window)
    windows = ShiftedWindows((1, length), (1, window), (1, stride), "flat", (False, wrap), (seed,))
    begins, gap = Counter(), windows.period(1)
    for offset in range(gap if windows.moves(1) else 1):
        one = windows.moved_by((0, offset))
        assert len(one) == len(windows) and (one.total > 0).all()  # pixels without weight, or corners outside, are errors
        begins.update(origin for _, origin in one.origins or one.corners)
    still = Windows.regular((1, length), (1, window), (1, stride), wrap=(False, wrap))
    if wrap:
        assert len(windows) == len(still) and set(begins) == set(range(length))
        assert max(begins.values()) - min(begins.values()) <= 1 + (length % gap > 0)
    elif window < length:
        assert len(still) <= len(windows) <= len(still) + 1
        places = range(1 - stride, length - window + 1)
        assert all(begins[place] == 1 for place in places)  # each once, in all offsets together: none more than another
    else:
        assert len(windows) == 1
    down, across = windows.offsets(RF(0.3), seed)
    assert down == 0 and 0 <= across < gap and (across == 0 or windows.moves(1))


@pytest.mark.parametrize(
    ("solver", "path", "kind", "size", "window", "stride", "wrap", "batch"),
    [
        ("euler", VP, "eps", (41, 23), (16, 8), (16, 8), (False, False), 8),
        ("heun", VE, "x0", (16, 41), (16, 8), (9, 3), (False, True), 3),
        ("dpmpp_2m", RF, "flow", (41, 8), (16, 8), (9, 8), (True, False), 6),
        ("dpmpp_3m_sde", VP, "v", (17, 9), (16, 8), (9, 3), (True, True), 64),
        ("unipc", RF, "x0", (40, 41), (16, 8), (9, 3), (False, False), 5),
    ],
)
def test_a_per_pixel_denoiser_is_the_whole_canvas(solver, path, kind, size, window, stride, wrap, batch):
    denoiser = PerPixel(path, kind)
    parts = run(MultiDiffusion(denoiser, shifted(size, window, stride, "cosine", wrap), batch=batch), solver, size)
    torch.testing.assert_close(parts, run(denoiser, solver, size), rtol=0, atol=2e-13)


def test_a_step_is_the_mean_of_windows_where_they_lie():
    """Windows of 8, every 5 of 21 pixels, by hand: which pixels, at what weight, seen by the network from where."""
    size, levels = (4, 21), get_grid("karras", RF, 5)
    windows = shifted(size, (4, 8), (4, 5), seeds=(4,))
    canvas, x, found = MultiDiffusion(LookAround(RF), windows, batch=3), draw(1, 3, *size), set()
    for s, t in pairwise(levels):
        offset = windows.offsets(s, 4)[1]
        found.add(offset)
        x0, total = torch.zeros_like(x), torch.zeros(21, dtype=torch.float64)
        for origin in range(-offset, 25 - offset, 5):
            begin = min(max(origin, 0), 13)
            said = LookAround(RF)(x[..., begin : begin + 8], s, Condition(), Context()).x0
            for p in range(max(origin, 0), min(origin + 8, 21)):
                weight = 1 - abs((p - origin + 0.5) / 4 - 1)
                x0[..., p] += weight * said[..., p - begin]
                total[p] += weight
        expected = (t.sigma / s.sigma) * x + (t.alpha - s.alpha * t.sigma / s.sigma) * x0 / total
        x = get_solver("euler").step(canvas, State(x), s, t, Condition(), Context()).x
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
    assert len(found) > 2 and max(found) < 5


@pytest.mark.parametrize("wrap", [(False, False), (False, True)])
def test_a_picture_depends_on_its_own_seed_and_levels_alone(wrap):
    """In any batch, replayed, or resumed in the middle."""
    size = (16, 29)
    both = run(MultiDiffusion(LookAround(RF), shifted(size, wrap=wrap), batch=5), "heun", size, Condition())
    for i, seed in enumerate((1, 2)):
        alone = run(
            MultiDiffusion(LookAround(RF), shifted(size, wrap=wrap, seeds=(seed,))), "heun", size, Condition(), seeds=(seed,)
        )
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-13)
    other = run(MultiDiffusion(LookAround(RF), shifted(size, wrap=wrap, seeds=(1, 3))), "heun", size, Condition())
    assert torch.allclose(other[0], both[0], atol=1e-12) and (other[1] - both[1]).abs().max() > 1e-3
    levels, x = get_grid("karras", RF, 6), draw(2, 3, *size)
    canvas = MultiDiffusion(LookAround(RF), shifted(size, wrap=wrap))
    states = list(trajectory(canvas, get_solver("euler"), x, levels))
    rest = sample(canvas, get_solver("euler"), states[2].x, levels[3:])
    torch.testing.assert_close(rest, states[-1].x, rtol=0, atol=1e-13)


def test_evaluations_and_what_caches_may_keep():
    """One window more than of a lattice that stays, along each axis that moves; none of a step is remembered in the next."""
    size = (16, 29)
    for cached in (None, get_cache("reuse", PerPixel(RF), stride=2)):
        context = Context()
        canvas = MultiDiffusion(cached or PerPixel(RF), shifted(size), batch=4)
        assert len(canvas.windows) == 9 == len(Windows.regular(size, (16, 8), (9, 3))) + 1
        parts = run(canvas, "dpmpp_2m", size, steps=6, context=context)
        assert context.evaluations == 2 * 6 * 9
        torch.testing.assert_close(parts, run(PerPixel(RF), "dpmpp_2m", size, steps=6), rtol=0, atol=1e-12)
    assert len(shifted((41, 29))) == 9 * 5 and len(shifted((40, 30), (40, 30), (9, 3))) == 1


def test_windows_are_told_by_where_they_lie():
    """Each picture's own places; what is aligned with the canvas is cropped where the windows are."""
    size, level, x = (16, 22), RF(0.8), draw(2, 3, 16, 22)
    image = draw(2, 3, *size, seed=1)
    conditions = [Condition(label=torch.tensor([k]), image=image) for k in (0, 1, 2)]

    def third(down, across):
        assert down == 0.5
        return min(int(3 * across), 2)

    windows = shifted(size, (16, 8), (16, 3))
    got = MultiDiffusion(LookAround(RF), windows, conditions, third, batch=4)(x, level, Condition(), Context()).x0
    for i, seed in enumerate((1, 2)):
        still, total = windows.moved_by(windows.offsets(level, seed)), torch.zeros(1, 3, *size, dtype=torch.float64)
        for k, (_, left) in enumerate(still.corners):
            own = Condition(label=torch.tensor([int(3 * (left + 4) / 22)]), image=image[i : i + 1, :, :, left : left + 8])
            said = LookAround(RF)(x[i : i + 1, :, :, left : left + 8], level, own, Context()).x0
            still.add(total, said * still.weight((k,))[0], k)
        torch.testing.assert_close(got[i : i + 1], total / still.total, rtol=0, atol=1e-14)
    assert windows.offsets(level, 1) != windows.offsets(level, 2) and isinstance(windows.at(level, 2), WindowsPerImage)
    with pytest.raises(ValueError, match="a function of where they lie"):
        MultiDiffusion(PerPixel(RF), windows, conditions, [0] * len(windows))


def test_no_place_is_a_border():
    """Windows that disagree, flat weights: a lattice that stays jumps at its borders, one that moves nowhere in particular."""

    def level_of(x, time, condition, context):
        return x.mean((1, 2, 3), keepdim=True).expand_as(x)

    x, found = draw(150, 1, 8, 24), {}
    lattice = {"size": (8, 8), "stride": (8, 4), "profile": "flat"}
    for name, windows in (
        ("still", Windows.regular((8, 24), **lattice)),
        ("shifted", ShiftedWindows((8, 24), **lattice, seeds=tuple(range(150)))),
    ):
        canvas = MultiDiffusion(NetworkDenoiser(level_of, RF, prediction="x0"), windows)
        step = canvas(x, RF(0.5), Condition(), Context()).x0.diff(dim=-1).abs().mean((0, 1, 2))
        inside = step[4:19]
        found[name] = (step[[7, 11, 15]].mean() / inside.mean()).item()  # into columns 8, 12, 16
    assert found["still"] > 3.5 and abs(found["shifted"] - 1) < 0.1


def test_synchronised_windows_are_those_of_the_step():
    """Weight 0 changes nothing; otherwise the windows of that level move, once each, and the anchor stays."""
    size, levels = (8, 20), get_grid("karras", RF, 4)
    canvas = MultiDiffusion(LookAround(RF), shifted(size, (8, 8), (8, 4)))
    x, plain = draw(2, 3, *size), get_solver("dpmpp_2m")
    whole = sample(canvas, plain, x, levels)
    assert torch.equal(sample(canvas, SyncDiffusion(plain, weight=0.0), x, levels), whole)
    context = Context()
    synced = sample(canvas, SyncDiffusion(plain, weight=0.05), x, levels, context=context)
    count = len(canvas.windows)
    assert (synced - whole).abs().max() > 1e-3 and context.evaluations == 2 * 4 * (2 * count - 1)
    fixed = replace(canvas, windows=canvas.at(levels[1], 2).windows)
    a, b = (
        SyncDiffusion(plain, weight=0.05).step(c, State(x), levels[1], levels[2], Condition(), Context())
        for c in (canvas, fixed)
    )
    assert torch.equal(a.x, b.x)


def _rank(expected):
    dist.init_process_group("gloo")
    canvas = MultiDiffusion(LookAround(RF), shifted((16, 29)), batch=4, group=dist.group.WORLD)
    torch.testing.assert_close(run(canvas, "dpmpp_3m_sde", (16, 29)), expected, rtol=0, atol=1e-12)


def test_two_processes_see_the_same_windows():
    on_processes(2, _rank, run(MultiDiffusion(LookAround(RF), shifted((16, 29))), "dpmpp_3m_sde", (16, 29)))


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="need a seed"):
        shifted((16, 29), seeds=())
    with pytest.raises(ValueError, match="A window of 16 does not fit a canvas of 12"):
        shifted((12, 29))
    with pytest.raises(ValueError, match="A stride of 9 is not possible with windows of 8"):
        shifted((16, 29), stride=(9, 9))
    with pytest.raises(ValueError, match="levels of single pictures"):
        MultiDiffusion(PerPixel(RF), shifted((16, 29)))(
            draw(2, 3, 16, 29), NoiseLevel(*(torch.full((2,), 0.5),) * 3), LABELS, Context()
        )
    with pytest.raises(ValueError, match="2 windows have 1 origins"):
        Windows((4, 6), (4, 4), ((0, 0), (0, 2)), origins=((0, 0),))
