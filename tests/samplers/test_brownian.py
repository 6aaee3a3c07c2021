"""Noise from a Brownian path: the law of Brownian motion, one path for all grids, and what that buys a solver."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samplers import Multistep, RectifiedFlow, VarianceExploding, brownian_noise, sample, seeded_noise
from samplers.analytic import Gaussian, Mixture
from samplers.brownian import CLOCKS, DEPTH, head_weights
from samplers.noise import KINDS, fold, normal
from samplers.prediction import Prediction
from samplers.solvers.singlestep import Singlestep

RF, VE = RectifiedFlow(), VarianceExploding()
COUNT = 10000
LIKE = torch.zeros(1, COUNT, dtype=torch.float64)
# within one cell of log-SNR, over cell borders, through many cells, from pure noise, to clean data
CUTS = [RF.at_logsnr(v) for v in (-3.0, -2.6, -2.5, -2.45, -0.2, 0.3, 6.1)]
ENDS = [RF(1.0), RF.at_logsnr(-0.5), RF.at_logsnr(0.25), RF(0.0)]


def weighted(clock, source, s, t):
    """W(t) - W(s)."""
    return math.sqrt(CLOCKS[clock](s.logsnr, t.logsnr)) * source(s, t)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_increments_add_up(clock, kind):
    source = brownian_noise([7, 8], torch.zeros(2, 3, 4, dtype=torch.float64), clock, kind)
    for i, s in enumerate(CUTS):
        for j in range(i + 2, len(CUTS)):
            parts = sum(weighted(clock, source, a, b) for a, b in pairwise(CUTS[i : j + 1]))
            whole = weighted(clock, source, s, CUTS[j])
            assert (parts - whole).abs().max() < 1e-12 * max(1.0, whole.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_increments_are_unit_normal(clock, kind):
    source = brownian_noise([3], LIKE, clock, kind)
    short = RF.at_logsnr(-2.6 + 2.5e-5)  # less than two of the finest parts of the tree: rounding to them would show
    for s, t in [
        (CUTS[1], short),
        *pairwise(CUTS),
        (CUTS[0], CUTS[-1]),
        (CUTS[1], CUTS[3]),
        *pairwise(ENDS),
        (ENDS[0], ENDS[-1]),
    ]:
        z = source(s, t)
        assert abs(z.mean()) < 4 / COUNT**0.5
        assert abs(z.var() - 1) < 4 * (2 / COUNT) ** 0.5
        assert abs((z**4).mean() - 3) < 4 * (96 / COUNT) ** 0.5  # a normal's fourth moment


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_disjoint_increments_are_independent(clock, kind):
    source = brownian_noise([4], LIKE, clock, kind)
    zs = [source(a, b) for a, b in pairwise(CUTS)]
    for i, a in enumerate(zs):
        for b in zs[:i]:
            assert abs((a * b).mean()) < 4 / COUNT**0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clock", CLOCKS)
def test_overlapping_increments_share_their_overlap(clock, kind):
    """corr(z(s, m), z(s, t)) = sqrt((c_m - c_s) / (c_t - c_s))."""
    source = brownian_noise([5], LIKE, clock, kind)
    for i, j, k in ((0, 1, 2), (0, 2, 4), (1, 3, 4), (3, 4, 5)):
        s, m, t = CUTS[i], CUTS[j], CUTS[k]
        expected = math.sqrt(CLOCKS[clock](s.logsnr, m.logsnr) / CLOCKS[clock](s.logsnr, t.logsnr))
        assert abs((source(s, m) * source(s, t)).mean() - expected) < 4 * ((1 + expected**2) / COUNT) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_does_not_depend_on_the_questions(kind):
    """Two sources of one seed, asked in other orders and at other points, give the same increments; backwards, negated."""
    like = torch.zeros(1, 5, dtype=torch.float64)
    first, second = (brownian_noise([9], like, kind=kind) for _ in range(2))
    forwards = [first(a, b) for a, b in pairwise(CUTS)]
    for level in (RF.at_logsnr(-2.47), RF.at_logsnr(0.01)):
        second(level, CUTS[-1])
    backwards = [second(a, b) for a, b in reversed(list(pairwise(CUTS)))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    assert torch.equal(second(CUTS[3], CUTS[1]), -second(CUTS[1], CUTS[3]))


def test_the_same_level_on_any_path():
    """The path lives in log-SNR: a VE and a flow run on the same levels see the same noise."""
    source = brownian_noise([2], torch.zeros(1, 6, dtype=torch.float64))
    a, b = (source(path.at_logsnr(-1.0), path.at_logsnr(0.7)) for path in (RF, VE))
    assert (a - b).abs().max() < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_on_their_own_seed(kind):
    like = torch.zeros(3, 4, dtype=torch.float32)
    together, alone = brownian_noise([11, 12, 13], like, kind=kind), brownian_noise([12], like[:1], kind=kind)
    a = together(CUTS[0], CUTS[4])
    assert torch.equal(a[1], alone(CUTS[0], CUTS[4])[0])
    assert a.dtype == torch.float32 and a.shape == like.shape
    assert not torch.allclose(a[0], a[1])
    forked = together.fork("again")(CUTS[0], CUTS[4])
    assert not torch.allclose(forked, a)
    again = brownian_noise([fold(seed, "again") for seed in (11, 12, 13)], like, kind=kind)
    assert torch.equal(forked, again(CUTS[0], CUTS[4]))


@pytest.mark.parametrize("clock", CLOCKS)
def test_the_weights_of_a_place_are_the_bridges_one_by_one(clock):
    """The same bridges as tensors: W at a log-SNR from the normals of its nodes, drawn one after another."""
    span, seeds, shape = CLOCKS[clock], [3], (5,)
    for position in (-2.0, -1.99, -0.2, 0.0, 0.5, 0.3, 5.75, 6.1):
        cell = math.floor(position)
        low, high, node = float(cell), cell + 1.0, 1
        w_low = torch.zeros(1, 5, dtype=torch.float64)
        w_high = math.sqrt(span(low, high)) * normal(seeds, shape, "brownian", cell, 0).double()
        for depth in range(DEPTH + 1):
            if position == low:
                break
            middle = (low + high) / 2 if depth < DEPTH else position
            before, after = span(low, middle), span(middle, high)
            line = w_low + before / (before + after) * (w_high - w_low)
            z = normal(seeds, shape, "brownian", cell, node).double()
            w_middle = line + math.sqrt(before * after / (before + after)) * z
            if position < middle:
                high, w_high, node = middle, w_middle, 2 * node
            else:
                low, w_low, node = middle, w_middle, 2 * node + 1
        weights = head_weights(span, position)
        total = sum((w * normal(seeds, shape, "brownian", cell, n).double() for n, w in weights.items()), torch.zeros(1, 5))
        assert (total - w_low).abs().max() < 1e-12 * max(1.0, w_low.abs().max())


MIXTURE = replace(Mixture.example(VE), stds=Mixture.example(VE).stds + 0.5)  # smooth: no image jumps between modes
START = 12 * torch.randn(1, 300, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Columns:
    """One image whose 300 pairs of pixels are each a point of the mixture: many paths from one seed."""

    path = VE

    def __call__(self, x, level, condition, context):
        p = MIXTURE(x[0], level, condition, context)
        return Prediction(x, level, p.raw[None], p.row)


def levels(steps):
    return [VE.at_logsnr(-2.5 + 4.0 * i / steps) for i in range(steps + 1)]


@pytest.mark.parametrize(
    ("solver", "clock"),
    [
        (Multistep(2, eta=1.0, rule="midpoint"), "sigma"),
        (Multistep(2, eta=1.0, rule="midpoint"), "snr"),
        (Singlestep(2, eta=1.0, noise="overlapping"), "snr"),
    ],
    ids=["2M SDE sigma", "2M SDE snr", "SDE snr"],
)
def test_strong_convergence(solver, clock):
    """Runs of N and 2N steps on one path come together at strong order 1 (additive noise, x0 as rough as the path);
    independent draws leave them as far apart as two samples."""

    def gaps(noise):
        runs = [sample(Columns(), solver, START, levels(n), noise=noise()) for n in (8, 16, 32)]
        return [(a - b).square().mean().sqrt().item() for a, b in pairwise(runs)]

    coarse, fine = gaps(lambda: brownian_noise([5], START, clock))
    assert 0.7 < math.log2(coarse / fine) < 1.3
    first, second = gaps(lambda: seeded_noise([5], START))
    assert second > 0.5 * first and second > 10 * fine


def test_the_exact_clock_needs_no_small_steps():
    """x0 is constant for a point mass, and the noise of the reverse SDE at eta = 1 is an increment in the clock "snr"."""
    point = Gaussian(VE, torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    start = 12 * torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, many = (sample(point, Multistep(1, eta=1.0), start, levels(n), noise=brownian_noise([1, 2], start)) for n in (1, 20))
    assert (one - many).abs().max() < 1e-12
    rough = sample(point, Multistep(1, eta=1.0), start, levels(1), noise=brownian_noise([1, 2], start, "sigma"))
    fine = sample(point, Multistep(1, eta=1.0), start, levels(20), noise=brownian_noise([1, 2], start, "sigma"))
    assert (rough - fine).abs().max() > 0.01  # a path in another clock only agrees in the limit


def test_mistakes_are_sentences():
    like = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="choose one of sigma, logsnr, snr"):
        brownian_noise([1, 2], like, "time")
    with pytest.raises(ValueError, match="one seed per image"):
        brownian_noise([1], like)
    with pytest.raises(ValueError, match="give two that differ"):
        brownian_noise([1, 2], like)(CUTS[0], CUTS[0])
