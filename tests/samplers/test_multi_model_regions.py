"""Regions against the formula written out, for every solver; what they see, share and cost; what they refuse."""

import re
from dataclasses import replace

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, VariancePreserving
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.windows import Windows
from samplers.guidance import AdaptiveProjected, ClassifierFree
from samplers.multi_model.masks import box_mask, rest, soften
from samplers.multi_model.regions import Bootstrap, Region, Regions
from tests.samplers.toy_models import SOLVERS, Toy, far, prompt, rand, run

H, W = 6, 8
X = rand(2, 3, H, W)
LEFT = box_mask((0, 0, H, 4), H, W, dtype=torch.float64)
SOFT = torch.rand(1, 1, H, W, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LEVEL = RectifiedFlow()(0.7)


def cfg(denoiser, scale, negative):
    return ClassifierFree(denoiser, scale, negative)


def three(**changes):
    """Soft masks that overlap, one with a weight."""
    masks = SOFT, 1 - SOFT, SOFT.flip(-1)
    weights = 1.0, 1.0, 2.5
    return tuple(Region(m, prompt(i), weight=w, **changes) for i, (m, w) in enumerate(zip(masks, weights, strict=True)))


def mean(raws, regions):
    total = sum(r.weight * r.mask for r in regions)
    return sum(r.weight * r.mask * raw for r, raw in zip(regions, raws, strict=True)) / total


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_of_single_pixels_is_run_apart_in_every_region(solver):
    toy = Toy(reach=0)
    regions = (Region(LEFT, prompt(0)), Region(1 - LEFT, prompt(1)))
    both = [run(toy, X, solver, condition=prompt(i, 2)) for i in range(2)]
    made = run(Regions(toy, regions), X, solver)
    assert far(made, torch.where(LEFT > 0, *both)) < 1e-12
    assert far(*both) > 0.1
    # a window is all that the network sees, and equal regions are the plain network
    windows = (Region(LEFT, prompt(0), window=(0, 0, H, 5)), Region(1 - LEFT, prompt(1), window=(0, 3, H, 5)))
    assert far(run(Regions(toy, windows), X, solver), made) < 1e-12
    same = tuple(replace(r, condition=None) for r in three())
    assert (
        far(run(Regions(Toy(), same), X, solver, condition=prompt(0, 2)), run(Toy(), X, solver, condition=prompt(0, 2))) < 1e-12
    )


@pytest.mark.parametrize("kind", ["flow", "eps", "x0"])
@pytest.mark.parametrize("at_once", [None, 1, 2])
def test_the_weighted_mean_of_what_regions_say(kind, at_once):
    toy, regions = Toy(kind=kind), three()
    said = Regions(toy, regions, at_once=at_once)(X, LEVEL, Condition(), Context())
    raws = [Toy(kind=kind)(X, LEVEL, r.condition.map(lambda v: v.expand(2, -1, -1)), Context()).raw for r in regions]
    assert far(said.raw, mean(raws, regions)) < 1e-14
    assert [rows for rows, *_ in toy.calls] == {None: [6], 1: [2, 2, 2], 2: [4, 2]}[at_once]
    order = Regions(Toy(kind=kind), tuple(regions[i] for i in (2, 0, 1)))(X, LEVEL, Condition(), Context())
    assert far(order.raw, said.raw) < 1e-14
    one = Regions(Toy(kind=kind), regions)(X[1:], LEVEL, Condition(), Context())
    assert far(one.raw, said.raw[1:]) < 1e-14


def test_windows_of_several_sizes_and_a_level_per_sample():
    boxes = (0, 0, 6, 5), (0, 3, 6, 5), (1, 2, 4, 4)
    regions = tuple(Region(torch.ones_like(LEFT), prompt(i), window=box) for i, box in enumerate(boxes))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    level, toy = RectifiedFlow()(t), Toy()
    said = Regions(toy, regions)(X, level, Condition(), Context())
    total, count = torch.zeros_like(X), torch.zeros_like(X)
    for region, (top, left, height, width) in zip(regions, boxes, strict=True):
        view = (..., slice(top, top + height), slice(left, left + width))
        total[view] += Toy()(X[view], level, region.condition.map(lambda v: v.expand(2, -1, -1)), Context()).raw
        count[view] += 1
    assert far(said.raw, total / count) < 1e-14 and far(said.x0, said.with_raw(total / count).x0) < 1e-14
    assert [rows for rows, *_ in toy.calls] == [4, 2]


def test_windows_have_unconditional_parts_of_their_own():
    boxes = (0, 0, 6, 5), (0, 3, 6, 5)
    regions = tuple(Region(torch.ones_like(LEFT), prompt(i), window=box) for i, box in enumerate(boxes))
    said = Regions(Toy(), regions, cfg, 3.0)(X, LEVEL, Condition(), Context())
    total, count = torch.zeros_like(X), torch.zeros_like(X)
    for i, (_, left, _, width) in enumerate(boxes):
        view = (..., slice(left, left + width))
        total[view] += cfg(Toy(), 3.0, None)(X[view], LEVEL, prompt(i, 2), Context()).raw
        count[view] += 1
    assert far(said.raw, total / count) < 1e-13


@pytest.mark.parametrize("windows", [False, True])
def test_prompts_do_not_leak(windows):
    """One step's pixels that only another region covers have no gradient in a prompt; its own have."""
    tokens = [rand(1, 1, 3, seed=i).requires_grad_() for i in range(3)]
    masks = [box_mask(box, H, W, dtype=torch.float64) for box in ((0, 0, H, 3), (0, 2, H, 4), (0, 6, H, 2))]
    seen = [(0, 0, H, 4), (0, 1, H, 6), (0, 4, H, 4)] if windows else [None] * 3
    regions = [Region(m, Condition(tokens=t), window=w) for m, t, w in zip(masks, tokens, seen, strict=True)]
    denoiser = Regions(Toy(), tuple(regions), guide=cfg, guidance_scale=3.0)
    x0 = denoiser(X, LEVEL, Condition(), Context()).x0
    for own in range(3):
        for pixel in ((2, 0), (2, 4), (2, 7)):
            [gradient] = torch.autograd.grad(x0[:, :, *pixel].sum(), tokens[own], retain_graph=True)
            assert bool(gradient.abs().sum() > 0) is bool(masks[own][0, 0, *pixel] > 0)


def test_guidance_by_region_and_one_unconditional_row_for_all():
    scales, toy = (1.5, None, 4.0), Toy()
    regions = tuple(replace(r, guidance_scale=s) for r, s in zip(three(), scales, strict=True))
    context = Context()
    said = Regions(toy, regions, cfg, 3.0)(X, LEVEL, Condition(), context)
    raws = [cfg(Toy(), s or 3.0, None)(X, LEVEL, prompt(i).map(lambda v: v.expand(2, -1, -1)), Context()).raw
            for i, s in enumerate(scales)]  # fmt: skip
    assert far(said.raw, mean(raws, regions)) < 1e-13
    assert context.evaluations == (3 + 1) * len(X)
    alone = Context()
    assert far(Regions(toy, regions, cfg, 3.0, at_once=1)(X, LEVEL, Condition(), alone).raw, said.raw) < 1e-13
    assert alone.evaluations == 2 * 3 * len(X)
    off = Context()  # at scale 1 nothing unconditional is evaluated
    Regions(toy, three(), cfg, 1.0)(X, LEVEL, Condition(), off)
    assert off.evaluations == 3 * len(X)


def test_other_rules_and_negatives_by_region():
    negatives = prompt(7), None, prompt(8)
    regions = tuple(replace(r, negative=n) for r, n in zip(three(), negatives, strict=True))

    def apg(denoiser, scale, negative):
        return AdaptiveProjected(denoiser, scale, negative, momentum=0.0)

    for rule in (cfg, apg):
        raws = []
        for region in regions:
            refused = region.negative or region.condition.null()
            own = region.condition.map(lambda v: v.expand(2, -1, -1))
            raws.append(rule(Toy(), 3.0, refused)(X, LEVEL, own, Context()).read((1.0, 0.0)))
        said = Regions(Toy(), regions, rule, 3.0)(X, LEVEL, Condition(), Context())
        assert far(said.x0, mean(raws, regions)) < 1e-12


def test_adapters_by_region():
    own = {"shift": 0.5}, None, {}
    regions = tuple(replace(r, adapters=a) for r, a in zip(three(), own, strict=True))
    for of_run in ({"shift": -0.25}, {"shift": torch.tensor([0.1, 0.2])}):
        said = Regions(Toy(), regions, cfg, 3.0)(X, LEVEL, Condition(), Context(adapters=of_run))
        raws = [
            cfg(Toy(), 3.0, None)(X, LEVEL, r.condition.map(lambda v: v.expand(2, -1, -1)), Context(adapters=a)).raw
            for r, a in zip(regions, ({"shift": 0.5}, of_run, {}), strict=True)
        ]
        assert far(said.raw, mean(raws, regions)) < 1e-13


def test_a_bootstrapped_region_sees_a_plain_background_outside_its_mask():
    backgrounds, eps = rand(5, 3, 1, 1, seed=9), rand(2, 3, H, W, seed=10)
    regions = (Region(LEFT, prompt(0)), Region(1 - LEFT, prompt(1), bootstrap=False))
    bootstrap = Bootstrap(backgrounds, eps, until=0.0, seeds=(1, 2))
    early, late = (RectifiedFlow().at_logsnr(v) for v in (-0.5, 0.5))
    toy, context = Toy(), Context()
    Regions(toy, regions, cfg, 3.0, bootstrap)(X, early, Condition(), context)
    assert context.evaluations == 2 * 2 * len(X)  # both regions have unconditional rows of their own
    seen, whole = toy.calls[0][2][:2], toy.calls[0][2][2:4]
    assert torch.equal(whole, X) and torch.equal(seen[..., :4], X[..., :4])
    for row in range(2):
        clean = (seen[row] - early.sigma * eps[row])[..., 4:] / early.alpha
        nearest = (clean.mean((1, 2)) - backgrounds[:, :, 0, 0]).abs().sum(1).argmin()
        assert far(clean, backgrounds[nearest].expand_as(clean)) < 1e-12
    plain = Regions(Toy(), regions, cfg, 3.0)
    started = Regions(Toy(), regions, cfg, 3.0, bootstrap)
    assert torch.equal(started(X, late, Condition(), Context()).raw, plain(X, late, Condition(), Context()).raw)
    # what a region says of its own pixels without looking at others does not depend on the background
    alone = Regions(Toy(reach=0), regions, bootstrap=bootstrap), Regions(Toy(reach=0), regions)
    a, b = (denoiser(X, early, Condition(), Context()).raw for denoiser in alone)
    assert far(a, b) < 1e-14
    # a picture's backgrounds are its own seed's
    one = Regions(toy, regions, cfg, 3.0, Bootstrap(backgrounds, eps[1:], 0.0, (2,)))(X[1:], early, Condition(), Context())
    assert far(one.raw, started(X, early, Condition(), Context()).raw[1:]) < 1e-14
    drawn = {tuple(Bootstrap(backgrounds, eps, 9.0, (s,)).behind(0, RectifiedFlow()(t)).flatten()[:1].tolist())
             for s in range(4) for t in (0.5, 0.5)}  # fmt: skip
    assert len(drawn) > 1


def test_pure_noise_of_an_eps_model():
    path = VariancePreserving.linear(zero_terminal_snr=True)
    said = Regions(Toy(kind="eps", path=path), three(), cfg, 2.0)(X, path(1.0), Condition(), Context())
    assert torch.isfinite(said.raw).all()


def test_masks():
    hard = box_mask((1, 2, 3, 4), H, W, dtype=torch.float64)
    assert hard.sum() == 12 and hard[0, 0, 1, 2] == hard[0, 0, 3, 5] == 1 and hard[0, 0, 4, 5] == hard[0, 0, 0, 2] == 0
    assert torch.equal(soften(hard, 0), hard)
    step = box_mask((0, 0, 4, 20), 4, 40, dtype=torch.float64)
    soft = soften(step, 4.0)
    assert far(soft, soft[:, :, :1]) < 1e-15 and (soft.diff(dim=-1) <= 0).all()  # replicated upwards, falling to the right
    assert far(soft + soft.flip(-1), torch.ones_like(soft)) < 1e-14  # the edge stays in its place
    fading = ((soft > 0.05) & (soft < 0.95))[0, 0, 0].sum()
    assert 4 <= fading <= 9
    assert far(soften(torch.ones_like(step), 3.0), torch.ones_like(step)) < 1e-14
    left = rest([hard, hard, 0.25 * (1 - hard)])
    assert torch.equal(left, 0.75 * (1 - hard))


NAMED = Region(LEFT, prompt(0), name="sky")


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ((), "There are no regions"),
        ((Region(LEFT, prompt(0)),), "24 cells of the canvas belong to no region, the first in row 0, column 4"),
        ((NAMED, Region(torch.ones(1, 1, H, W - 1))), "The mask of region 1 is 6 x 7, and that of region 'sky' 6 x 8"),
        ((replace(NAMED, weight=0.0),), "The weight of region 'sky' is 0.0; give a finite number above 0"),
        ((replace(NAMED, weight=float("nan")),), "The weight of region 'sky' is nan"),
        ((replace(NAMED, window=(0, 5, H, 4)),), "window of region 'sky' (0, 5, 6, 4) (top, left, height, width) reaches"),
        ((replace(NAMED, window=(0, 5, 0, 4)),), "is empty"),
        ((Region(torch.zeros(1, 1, H, W)),), "The mask of region 0 is 0 everywhere"),
        ((Region(2 * LEFT),), "numbers from 0 to 1"),
        ((Region(LEFT[0]),), "give floats (1 or B, 1, H, W)"),
        ((replace(NAMED, guidance_scale=2.0),), "has a guidance scale of its own, but no guide"),
        ((Region(torch.ones_like(LEFT), window=(0, 0, H, 4)),), "24 cells of the canvas belong to no region"),
    ],
)  # fmt: skip
def test_refusals(regions, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Regions(Toy(), regions)


def test_a_canvas_of_another_size():
    with pytest.raises(ValueError, match="The masks are 6 x 8, but x is 8 x 6"):
        Regions(Toy(), three())(X.transpose(2, 3), LEVEL, Condition(), Context())
    with pytest.raises(ValueError, match="at_once is 0"):
        Regions(Toy(), three(), at_once=0)


@pytest.mark.parametrize("guided", [False, True])
def test_regions_of_a_tiled_canvas(guided):
    """The tiles of every region's canvas, under the regions and their guidance."""
    windows = Windows.regular((H, W), (6, 5), (6, 3))
    guide, scale = (cfg, 3.0) if guided else (None, 1.0)
    said = Regions(MultiDiffusion(Toy(), windows), three(), guide, scale)(X, LEVEL, Condition(), Context())
    raws = []
    for i in range(3):
        tiled = MultiDiffusion(Toy(), windows)
        raws.append((cfg(tiled, scale, None) if guided else tiled)(X, LEVEL, prompt(i, 2), Context()).raw)
    assert far(said.raw, mean(raws, three())) < 1e-13
