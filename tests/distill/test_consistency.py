"""The equations of consistency models: the boundary, the schedules, the levels."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from distill.losses.consistency_schedules import (
    Boundary,
    check_reach,
    doubling_count,
    growing_count,
    growing_decay,
    log_normal_shares,
    pick,
    ratios,
    tuned_ratio,
)
from distill.types import Draws
from samplers.grids import karras
from samplers.noise_ratio import at_ratio
from samplers.path import RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.prediction import Prediction, prediction_row

PATHS = {"flow": RectifiedFlow(), "vp": VariancePreserving.cosine(64), "ve": VarianceExploding()}


def said(path, kind: str, ratio: list[float]) -> Prediction:
    """A prediction of random numbers at given noise ratios."""
    g = torch.Generator().manual_seed(0)
    level = at_ratio(path, torch.tensor(ratio, dtype=torch.float64))
    x, raw = (3 * torch.randn(len(ratio), 2, 4, 4, generator=g).double() for _ in range(2))
    return Prediction(x, level, raw, prediction_row(kind, level, path))


@pytest.mark.parametrize("kind", ["edm", "x0", "flow", "eps"])
@pytest.mark.parametrize("path", PATHS)
def test_at_the_lowest_level_the_function_is_the_point_itself(path, kind):
    """Whatever the network says. Scalings of sigma in place of sigma - sigma_min fail this."""
    if kind == "edm" and path != "ve":
        return
    prediction = said(PATHS[path], kind, [0.002] * 3)
    y = prediction.x / prediction.level.alpha.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Boundary(0.002)(prediction, kind), y, atol=1e-12, rtol=0)
    assert (Boundary(0.0)(prediction, kind) - y).abs().max() > 1e-6


def test_the_published_scalings():
    """c_skip and c_out of arXiv 2303.01469, appendix C; with sigma_min = 0 they are EDM's, and f is the denoiser."""
    prediction = said(PATHS["ve"], "edm", [0.01, 0.5, 80.0])
    sigma = torch.tensor([0.01, 0.5, 80.0], dtype=torch.float64).reshape(-1, 1, 1, 1)
    c_skip = 0.25 / ((sigma - 0.002) ** 2 + 0.25)
    c_out = 0.5 * (sigma - 0.002) / (0.25 + sigma**2).sqrt()
    torch.testing.assert_close(Boundary(0.002)(prediction, "edm"), c_skip * prediction.x + c_out * prediction.raw)
    torch.testing.assert_close(Boundary(0.0)(prediction, "edm"), prediction.x0, atol=1e-10, rtol=1e-10)


def test_far_from_the_boundary_a_denoiser_stays_what_it_was():
    prediction = said(PATHS["flow"], "x0", [0.8, 80.0])
    change = (Boundary(0.002, width=0.05)(prediction, "x0") - prediction.x0).flatten(1).abs().amax(1)
    gap = (prediction.x / prediction.level.alpha.reshape(-1, 1, 1, 1) - prediction.x0).flatten(1).abs().amax(1)
    assert (change / gap).tolist() == pytest.approx([0.0025 / (0.798**2 + 0.0025), 0.0025 / 79.998**2], rel=1e-3)


def test_ratios_are_the_samplers_karras_grid():
    mine = ratios(18, 0.002, 80.0, 7.0)
    theirs = [level.sigma for level in karras(PATHS["ve"], 18)][:-1]
    assert mine.flip(0).tolist() == pytest.approx(theirs, rel=1e-10)
    assert (mine[0].item(), mine[-1].item()) == (0.002, 80.0)


@pytest.mark.parametrize(("first", "last"), [(2, 150), (2, 200), (10, 1280)])
def test_the_number_of_levels_grows_from_s0_to_s1_plus_1(first, last):
    counts = [growing_count(k, 5000, first, last) for k in range(5001)]
    assert counts[0] == first and counts[-1] == last + 1
    assert all(a <= b for a, b in pairwise(counts))
    middle = math.ceil(math.sqrt(0.5 * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1
    assert counts[2500] == middle
    assert growing_count(9999, 5000, first, last) == last + 1  # a run that goes on stays there


def test_the_targets_decay_starts_at_mu0_and_nears_1():
    assert growing_decay(2, 2, 0.95) == pytest.approx(0.95)
    assert growing_decay(201, 2, 0.95) == pytest.approx(math.exp(2 * math.log(0.95) / 201))


def test_the_number_of_levels_doubles_seven_times():
    total = 8000
    counts = [doubling_count(k, total, 10, 1280) for k in range(total)]
    assert sorted(set(counts)) == [10 * 2**i + 1 for i in range(8)]
    assert [counts.count(10 * 2**i + 1) for i in range(8)] == [1000] * 8
    assert doubling_count(10**9, total, 10, 1280) == 1281


def test_levels_follow_the_log_normal_between_the_ends_of_the_grid():
    grid = ratios(11, 0.002, 80.0, 7.0)
    shares = log_normal_shares(grid, -1.1, 2.0)
    assert shares.sum().item() == pytest.approx(1)
    z = (-1.1 + 2.0 * torch.randn(200_000, generator=torch.Generator().manual_seed(0)).double()).exp()
    counted = torch.histogram(z, grid).hist
    torch.testing.assert_close(counted / counted.sum(), shares, atol=0.004, rtol=0)
    index = pick(shares, Draws(0, torch.arange(20_000)).uniform("level"))
    torch.testing.assert_close(torch.bincount(index, minlength=10) / 20_000, shares.float(), atol=0.015, rtol=0)
    assert pick(shares, torch.tensor([0.0, 1.0])).tolist() == [0, 9]


def test_ect_begins_as_diffusion_and_closes_the_gap():
    t = torch.tensor([0.01, 0.3, 2.0, 80.0]).double()
    gaps = [t - tuned_ratio(t, stage, 8.0, 1.0, 2.0) for stage in range(9)]
    assert torch.equal(gaps[0], t)  # r = 0: clean data
    n = 1 + 8 / (1 + t.exp())
    torch.testing.assert_close(gaps[4], t * n / 16)
    torch.testing.assert_close(gaps[8], gaps[7] / 2)


def test_a_path_that_does_not_reach_is_refused():
    with pytest.raises(ValueError, match=r"sigma / alpha = 14\.6.*sigma_max is 80"):
        check_reach(VariancePreserving.scaled_linear(), 80.0)
    check_reach(RectifiedFlow(), 80.0)
    check_reach(VarianceExploding(), 80.0)
