"""Grids: what they promise on every path, and sentences for what they cannot do."""

import math
from itertools import pairwise

import numpy as np
import pytest

from samplers import RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, grid_names
from samplers import grids as g
from samplers.path import Trigonometric, VariancePreservingSDE

PATHS = {
    "VE": VarianceExploding(),
    "VP": VariancePreserving.scaled_linear(),
    "zero SNR": VariancePreserving.scaled_linear(zero_terminal_snr=True),
    "RF": RectifiedFlow(),
    "trigonometric": Trigonometric(),
    "VP SDE": VariancePreservingSDE(),
}
TABLE_ONLY = ("leading", "linspace", "scheduler")
FLOW_ONLY = ("dynamic_shift", "optimal_steps", "bong_tangent", "scheduler_flow")


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", grid_names())
def test_every_grid_on_every_path(name, path, steps):
    if name in TABLE_ONLY and path not in ("VP", "zero SNR"):
        with pytest.raises(ValueError, match="no table of timesteps"):
            get_grid(name, PATHS[path], steps)
        return
    if name in FLOW_ONLY and path != "RF":
        with pytest.raises(ValueError, match="rectified flow"):
            get_grid(name, PATHS[path], steps)
        return
    own = {"values": [0.9 * 0.8**i for i in range(steps)]} if name == "table" else {}
    levels = get_grid(name, PATHS[path], steps, **own)
    assert len(levels) == steps + 1
    assert levels[-1].sigma == 0 and levels[-1].alpha == 1
    assert all(a.logsnr < b.logsnr for a, b in pairwise(levels))
    assert all(isinstance(v, float) for level in levels for v in (level.t, level.alpha, level.sigma))


@pytest.mark.parametrize("name", ["karras", "exponential", "polyexponential", "uniform_logsnr"])
def test_bounds_mean_the_same_on_every_path(name):
    bounds = {"logsnr_min": -3.0, "logsnr_max": 3.0}
    if name != "uniform_logsnr":
        bounds = {"sigma_min": math.exp(-3), "sigma_max": math.exp(3)}
    grids = [[v.logsnr for v in get_grid(name, path, 9, **bounds)] for path in PATHS.values()]
    assert np.allclose(grids[0][:-1], grids[1][:-1], atol=1e-11) and all(
        np.allclose(grids[0][:-1], other[:-1], atol=1e-11) for other in grids[3:]
    )
    assert math.isclose(grids[0][0], -3, abs_tol=1e-12) and math.isclose(grids[0][-2], 3, abs_tol=1e-12)


def test_default_bounds():
    first, *_, last, _ = g.karras(PATHS["VE"], 5)
    assert math.isclose(first.sigma, 80, rel_tol=1e-14) and math.isclose(last.sigma, 0.002, rel_tol=1e-14)
    first, *_, last, _ = g.karras(PATHS["zero SNR"], 5)
    assert math.isclose(first.t, 0.999) and math.isclose(last.t, 0.001)  # the table's finite entries
    first, *_, last, _ = g.karras(PATHS["RF"], 5)
    assert math.isclose(first.t, 0.999) and math.isclose(last.t, 0.001)


def test_time_grids_start_at_pure_noise():
    for path in ("RF", "zero SNR"):
        assert g.uniform_time(PATHS[path], 7)[0].alpha == 0
    assert g.uniform_time(PATHS["VE"], 4)[0].sigma == 80


def test_shift():
    """Equation 23 of arXiv 2403.03206, and its meaning: sigma / alpha times the shift."""
    plain, shifted = g.uniform_time(PATHS["RF"], 10), g.uniform_time(PATHS["RF"], 10, shift=3.0)
    assert shifted[0].t == 1
    for a, b in zip(plain[1:-1], shifted[1:-1], strict=True):
        assert math.isclose(b.sigma / b.alpha, 3 * a.sigma / a.alpha)


def test_sgm_uniform_is_linspace_without_its_last():
    path = PATHS["VP"]
    ours = [1000 * v.t - 1 for v in g.sgm_uniform(path, 10)[:-1]]
    assert np.allclose(ours, np.linspace(999, 0, 11)[:-1])


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.7), (2.0, 3.5), (1.0, 1.0), (0.2, 0.2)])
def test_beta_quantiles(a, b):
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    ours = [v.t for v in g.beta(PATHS["RF"], 25, a, b)[:-1]]
    assert np.allclose(ours, stats.beta.ppf(1 - np.arange(25) / 25, a, b), rtol=1e-9, atol=1e-12)


def test_beta_on_a_table_runs_over_its_timesteps():
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    ours = [1000 * v.t - 1 for v in g.beta(PATHS["VP"], 20)[:-1]]
    assert np.allclose(ours, 999 * stats.beta.ppf(1 - np.arange(20) / 20, 0.6, 0.6), atol=1e-8)


def test_aligned_steps_interpolate_in_log_sigma():
    ten, twenty = (g.align_your_steps(PATHS["VE"], n) for n in (10, 20))
    assert all(math.isclose(a.sigma, b.sigma) for a, b in zip(ten[:-1], twenty[:-1:2], strict=True))
    assert math.isclose(twenty[1].sigma, math.sqrt(14.615 * 6.475))


@pytest.mark.parametrize("steps", [0, -3, 2.0, True, None, "7"])
@pytest.mark.parametrize("name", grid_names())
def test_steps_are_checked(name, steps):
    with pytest.raises(ValueError, match="whole number of at least 1"):
        get_grid(name, PATHS["VP"], steps)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g.karras(PATHS["VE"], 5, sigma_min=3, sigma_max=2), "sigma_min < sigma_max"),
        (lambda: g.karras(PATHS["VE"], 5, sigma_min=math.nan), "sigma_min < sigma_max"),
        (lambda: g.karras(VarianceExploding(0.0, 10.0), 5), "0 < sigma_min"),
        (lambda: g.karras(PATHS["VE"], 5, rho=0), "rho must be"),
        (lambda: g.exponential(PATHS["VE"], 5, sigma_max=math.inf), "infinity"),
        (lambda: g.uniform_logsnr(PATHS["RF"], 5, logsnr_min=-math.inf), "must be finite"),
        (lambda: g.uniform_logsnr(PATHS["RF"], 5, logsnr_min=2, logsnr_max=1), "sigma_min < sigma_max"),
        (lambda: g.uniform_time(PATHS["VP"], 1001, rounded=True), "at most 1000 steps"),
        (lambda: g.uniform_time(PATHS["VP"], 5, "middle"), "Unknown spacing"),
        (lambda: g.uniform_time(PATHS["VE"], 5, shift=3.0), "clock from 0 to 1"),
        (lambda: g.uniform_time(PATHS["RF"], 5, shift=-1.0), "shift must be"),
        (lambda: g.beta(PATHS["RF"], 5, alpha=0.0), "alpha must be"),
        (lambda: g.align_your_steps(PATHS["VP"], 5, family="sd3"), "Unknown family"),
        (lambda: g.from_table(PATHS["RF"], [0.5, math.nan]), "NaN"),
        (lambda: g.from_table(PATHS["RF"], [0.5, 0.6]), "does not fall in noise"),
        (lambda: g.from_table(PATHS["RF"], [1.5, 0.6]), "clock runs from 0 to 1"),
        (lambda: g.from_table(PATHS["RF"], [0.5, -0.1]), "negative"),
        (lambda: g.from_table(PATHS["RF"], []), "whole number of at least 1"),
        (lambda: g.from_table(PATHS["RF"], [0.5], unit="snr"), "Unknown unit"),
        (lambda: g.table(PATHS["RF"], 3), "needs values"),
        (lambda: g.table(PATHS["RF"], 3, "0.5"), "needs values"),
        (lambda: g.table(PATHS["RF"], 3, [0.5, 0.2]), "makes 2 steps, but 3 were asked for"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_table_may_or_may_not_end_in_clean_data():
    with_zero, without = (g.from_table(PATHS["RF"], v) for v in ([1.0, 0.7, 0.2, 0.0], [1.0, 0.7, 0.2]))
    assert with_zero == without and len(without) == 4
    assert g.from_table(PATHS["VE"], [math.log(0.1), math.inf], "logsnr")[0].sigma == pytest.approx(10)


@pytest.mark.parametrize("unit", ["t", "sigma", "logsnr"])
def test_a_named_table_may_begin_with_pure_noise(unit):
    values = {"t": [0.7, 0.2], "sigma": [7 / 3, 0.25], "logsnr": [math.log(3 / 7), math.log(4)]}[unit]
    levels = get_grid("table", PATHS["RF"], 3, values=values, unit=unit, pure_noise=True)
    expected = g.from_table(PATHS["RF"], [1.0, 0.7, 0.2])
    assert np.allclose([[v.t, v.alpha] for v in levels], [[v.t, v.alpha] for v in expected], atol=1e-14)
    assert levels[0].alpha == 0
