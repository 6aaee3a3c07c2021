"""SyncDiffusion: nothing at weight 0 or where windows agree, closer windows otherwise, the same on every path."""

from __future__ import annotations

import pytest
import torch

from samplers import (
    Condition,
    Context,
    NoiseLevel,
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
from samplers.analytic import Mixture
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.sync_diffusion import PUBLISHED_FALLOFF, SyncDiffusion, perceptual_distance, style_distance
from samplers.canvas.windows import Windows
from samplers.sample import State
from tests.samplers.canvases import LookAround, draw

VE, VP, RF = VarianceExploding(0.02, 20.0), VariancePreserving.linear(), RectifiedFlow()


def canvas(denoiser, width=20, stride=4, **options):
    return MultiDiffusion(denoiser, Windows.regular((8, width), (8, 8), (8, stride)), **options)


def half_square(x, anchor):
    """Its gradient by x is x - anchor: the images themselves, for checks by hand."""
    return 0.5 * (x - anchor).square().sum((1, 2, 3))


def windows_of(field, x):
    return field.windows.crop(x, range(len(field.windows))).unflatten(0, (len(field.windows), -1))


def styles_apart(field, x):
    """Mean style distance of the windows to their middle one, per pixel."""
    rows = windows_of(field, x)
    return sum(style_distance(row, rows[len(rows) // 2]).mean().item() for row in rows) / 64 / (len(rows) - 1)


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m_sde"])
def test_weight_zero_and_pure_noise_are_the_plain_canvas_to_the_bit(solver):
    field, levels = canvas(LookAround(RF)), get_grid("karras", RF, 4)
    x = levels[0].sigma * draw(2, 3, 8, 20)
    plain = sample(field, get_solver(solver), x, levels, noise=seeded_noise([1, 2], x))
    for options in ({"weight": 0.0}, {"interval": (90.0, 99.0)}, {"weight": lambda level: 0}):
        synced = SyncDiffusion(get_solver(solver), **options)
        assert torch.equal(sample(field, synced, x, levels, noise=seeded_noise([1, 2], x)), plain)
    noise = [RF(1.0), RF(0.5)]
    first = sample(field, SyncDiffusion(get_solver("euler")), x, noise)
    assert torch.equal(first, sample(field, get_solver("euler"), x, noise))


def test_windows_that_agree_do_not_move():
    """A canvas of one period per stride: every window sees the same."""
    x = draw(2, 3, 8, 4).repeat(1, 1, 1, 5)
    field, level = canvas(LookAround(VP)), VP(0.6)
    synced = SyncDiffusion(get_solver("euler"), half_square, 5.0)
    moved = synced.step(field, State(x), level, VP(0.5), Condition(), Context())
    plain = get_solver("euler").step(field, State(x), level, VP(0.5), Condition(), Context())
    torch.testing.assert_close(moved.x, plain.x, rtol=0, atol=1e-13)


def test_a_step_is_the_published_one():
    """Move each window but the anchor along its gradient, step it, average; the anchor's own step goes in as it is."""
    field, s, t, x = canvas(LookAround(VP, "eps"), batch=3), VP(0.6), VP(0.5), draw(2, 3, 8, 20)
    rows, euler, weight = windows_of(field, x).clone(), get_solver("euler"), 0.3

    def clean(row):
        return LookAround(VP, "eps")(row, s, Condition(), Context()).x0

    anchor, total = clean(rows[2]), torch.zeros_like(x)
    for i, row in enumerate(rows):
        if i != 2:
            leaf = row.clone().requires_grad_()
            (slope,) = torch.autograd.grad((clean(leaf) - anchor).square().sum() / 2, leaf)
            row = row - weight * PUBLISHED_FALLOFF ** (1 - 0.6) * slope
        stepped = euler.step(LookAround(VP, "eps"), State(row), s, t, Condition(), Context())
        field.windows.add(total, stepped.x * field.windows.weights, i)
    context = Context()
    with torch.no_grad():
        got = SyncDiffusion(euler, half_square, weight).step(field, State(x), s, t, Condition(), context)
    torch.testing.assert_close(got.x, total / field.windows.total, rtol=0, atol=1e-12)
    assert context.evaluations == 2 * (
        2 * 4 - 1
    )  # the anchor once, the three others with a gradient and again where they moved


@pytest.mark.parametrize("checkpoint", [False, True])
def test_windows_come_closer_and_the_anchor_stays(checkpoint):
    """A small weight lowers every window's distance; windows side by side show each on its own."""
    field, level, x = canvas(LookAround(RF), 24, 8), RF(0.5), draw(2, 3, 8, 24)
    synced = SyncDiffusion(get_solver("euler"), style_distance, 0.02, falloff=1.0, checkpoint=checkpoint)
    after = synced.step(field, State(x), level, RF(0.4), Condition(), Context()).prediction
    before, now = windows_of(field, field(x, level, Condition(), Context()).x0), windows_of(field, after.x0)
    torch.testing.assert_close(now[1], before[1], rtol=0, atol=1e-13)
    torch.testing.assert_close(windows_of(field, after.x)[1], windows_of(field, x)[1], rtol=0, atol=1e-14)
    for i in (0, 2):
        assert (style_distance(now[i], now[1]) < style_distance(before[i], before[1])).all()


def test_the_gradient_is_by_the_variance_preserving_x():
    """VE at sigma is VP scaled by sqrt(1 + sigma^2): a step from the same image leads to the same image."""
    level = VP(0.6)
    ratio, x = level.sigma / level.alpha, draw(2, 3, 8, 20)
    results = {}
    for name, path, here, there in (
        ("VP", VP, level, VP(0.5)),
        ("VE", VE, NoiseLevel(ratio, 1.0, ratio), VE(VP(0.5).sigma / VP(0.5).alpha)),
    ):
        scale = (here.alpha**2 + here.sigma**2) ** 0.5
        synced = SyncDiffusion(get_solver("euler"), half_square, lambda level: 0.3)
        field = canvas(_UnitMean(path))
        after = synced.step(field, State(scale * x), here, there, Condition(), Context()).x
        results[name] = after / (there.alpha**2 + there.sigma**2) ** 0.5
    torch.testing.assert_close(results["VE"], results["VP"], rtol=0, atol=1e-12)


class _UnitMean(LookAround):
    """`LookAround` whose every input is the unit-variance x, so that it means the same on all paths."""

    def __call__(self, x, level, condition, context):
        scale = (level.alpha**2 + level.sigma**2) ** 0.5
        unit = super().__call__(x / scale, NoiseLevel(level.t, level.alpha / scale, level.sigma / scale), condition, context)
        return type(unit)(x, level, unit.x0, (1.0, 0.0))


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_windows_end_up_closer_than_with_multidiffusion_at_equal_cost(solver):
    """Two kinds of pictures, bright and dark; windows that touch only at their edges choose for themselves."""
    means = torch.stack([torch.full((3, 8, 8), v, dtype=torch.float64) for v in (-1.0, 1.0)])
    data = Mixture(VP, means, torch.full_like(means, 0.3), torch.ones(2, dtype=torch.float64) / 2)
    field, inner = canvas(data, 36, 7), get_solver(solver)
    x, found = draw(8, 3, 8, 36), {}
    for name, steps, run in (("multi", 24, inner), ("sync", 12, SyncDiffusion(inner, style_distance, 0.3))):
        context, levels = Context(), get_grid("karras", VP, steps)
        image = sample(field, run, levels[0].sigma * x, levels, noise=seeded_noise(range(8), x), context=context)
        found[name] = styles_apart(field, image), context.evaluations
    assert found["sync"][1] <= found["multi"][1]
    assert found["sync"][0] < 0.4 * found["multi"][0]


def test_guidance_inside_is_part_of_what_is_synchronised():
    """CFG++ gets both branches at the moved canvas; a cache that skips a step leaves it as it is."""
    labels, x = Condition(label=torch.tensor([1, 2])), draw(2, 3, 8, 20)
    field, solver = get_guidance("cfgpp", LookAround(VP), get_solver("euler"), scale=0.6)
    run = [sample(canvas(field), s, x, [VP(0.6), VP(0.5), VP(0.3)], labels) for s in (SyncDiffusion(solver), solver)]
    assert torch.isfinite(run[0]).all() and (run[0] - run[1]).abs().max() > 0.01
    reuse, context = canvas(get_cache("reuse", LookAround(VP), stride=2, order=0)), Context()
    sample(reuse, SyncDiffusion(get_solver("euler")), x, [VP(0.6), VP(0.5), VP(0.3)], labels, context=context)
    assert context.evaluations == 2 * 7


def test_perceptual_distance_is_lpips_with_equal_weights():
    a, b = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1)
    decoded = perceptual_distance(lambda x: [x[:, :2], x.square()], lambda z: 2 * z)(a, b)
    expected = 0.0
    for f, g in ((2 * a[:, :2], 2 * b[:, :2]), ((2 * a) ** 2, (2 * b) ** 2)):
        cosine = torch.nn.functional.cosine_similarity(f, g, dim=1)
        expected = expected + (2 - 2 * cosine).mean((1, 2))
    torch.testing.assert_close(decoded, expected, rtol=1e-6, atol=1e-6)


def test_errors_are_sentences():
    x, euler = draw(1, 3, 8, 20), get_solver("euler")

    def step(solver, field):
        return solver.step(field, State(x), VP(0.6), VP(0.5), Condition(), Context())

    with pytest.raises(ValueError, match="must be MultiDiffusion itself"):
        step(SyncDiffusion(euler), LookAround(VP))
    with pytest.raises(ValueError, match="anchor=9, but the windows are 0 to 3"):
        step(SyncDiffusion(euler, anchor=9), canvas(LookAround(VP)))
    with pytest.raises(ValueError, match="one number per window"):
        step(SyncDiffusion(euler, lambda a, b: (a - b).square()), canvas(LookAround(VP)))
    with pytest.raises(ValueError, match="finite number of at least 0"):
        SyncDiffusion(euler, weight=-1.0)
