"""Resolution shifts: SD3's equation 23, Flux's dynamic mu, and the same thing on any path."""

import math
from itertools import pairwise

import pytest
import torch

from samplers import RectifiedFlow, VarianceExploding, VariancePreserving, get_grid
from samplers import grids as g
from samplers.path import Trigonometric

RF = RectifiedFlow()
PATHS = {"VE": VarianceExploding(), "VP": VariancePreserving.scaled_linear(), "RF": RF, "trigonometric": Trigonometric()}


def test_equation_23():
    """t_m = sqrt(m / n) t_n / (1 + (sqrt(m / n) - 1) t_n), for images of four times the pixels."""
    shift = g.resolution_shift(1024 * 1024, 512 * 512)
    assert shift == 2
    for plain, moved in zip(g.uniform_time(RF, 8), g.uniform_time(RF, 8, shift=shift), strict=True):
        assert math.isclose(moved.t, 2 * plain.t / (1 + plain.t), abs_tol=1e-15)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63), (2176, 0.825)])
def test_mu_is_a_line_through_two_token_counts(tokens, mu):
    assert math.isclose(g.dynamic_mu(tokens), mu, rel_tol=1e-12)


@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 8000])
def test_dynamic_shift_is_diffusers(tokens, terminal):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 20, 20).tolist(), mu=g.dynamic_mu(tokens))
    ours = [v.t for v in g.dynamic_shift(RF, 20, tokens, terminal=terminal)]
    assert (torch.tensor(ours) - scheduler.sigmas).abs().max() < 3e-7


def test_dynamic_shift_by_hand():
    mu = g.dynamic_mu(3000)
    for i, level in enumerate(get_grid("flux", RF, 10, tokens=3000)[1:-1], 1):
        t = 1 - i / 10
        assert math.isclose(level.t, math.exp(mu) / (math.exp(mu) + (1 / t - 1)), rel_tol=1e-14)


@pytest.mark.parametrize("name", PATHS)
def test_shifted_multiplies_the_noise_ratio(name):
    path = PATHS[name]
    levels = get_grid("karras", path, 6, sigma_min=0.1, sigma_max=10.0)
    moved = g.shifted(path, levels, 3.0)
    assert all(
        math.isclose(b.logsnr, a.logsnr - math.log(3), rel_tol=1e-11) for a, b in zip(levels[:-1], moved[:-1], strict=True)
    )
    assert moved[-1].sigma == 0


def test_shifted_is_the_clock_shift_on_rectified_flow():
    moved = g.shifted(RF, g.uniform_time(RF, 9), 2.5)
    assert moved[0].alpha == 0
    assert all(math.isclose(a.t, b.t, abs_tol=1e-14) for a, b in zip(moved, g.uniform_time(RF, 9, shift=2.5), strict=True))


def test_a_shift_above_one_spends_more_steps_on_noise():
    levels = g.dynamic_shift(RF, 10)
    assert sum(v.t > 0.5 for v in levels) > sum(v.t > 0.5 for v in g.uniform_time(RF, 10))
    assert all(a.t > b.t for a, b in pairwise(levels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: g.resolution_shift(0, 10), "pixels must be"),
        (lambda: g.dynamic_mu(-1), "tokens must be"),
        (lambda: g.dynamic_mu(100, base_tokens=5, max_tokens=5), "base_tokens < max_tokens"),
        (lambda: g.dynamic_shift(PATHS["VP"], 5), "use `shifted`"),
        (lambda: g.dynamic_shift(RF, 5, terminal=1.0), "0 < terminal < 1"),
        (lambda: g.dynamic_shift(RF, 1, terminal=0.1), "at least 2 steps"),
        (lambda: g.shifted(RF, g.uniform_time(RF, 3), 0.0), "shift must be"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()
