"""Long steps: what solvers with memory make of them, on grids that jump to their end."""

import math

import pytest
import torch

from samplers import Condition, Context, Multistep, VarianceExploding, VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.sample import Evaluation
from samplers.solvers.ending import is_bounded
from tests.benchmarks.endings import PATHS, WITH_MEMORY, pairs, ratios, rms, spread

SOME = ("karras", "uniform", "leading", "normal", "quadratic", "beta", "kl_optimal", "vp")
NOISY = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "sa_solver")
SD = VariancePreserving.scaled_linear()


@pytest.mark.parametrize("name", sorted({*WITH_MEMORY} - {*NOISY, "er_sde"}))
def test_ten_steps_are_hardly_ever_worse_than_eulers(name):
    assert sum(r > 1 for r in ratios(get_solver(name), 10, SOME)) <= 3


@pytest.mark.parametrize("name", ["unipc", "dpmpp_3m", "dpmpp_2m", "deis"])
def test_stable_diffusions_leading_grid(name):
    """Ten steps, of which the last noisy one is as long as four others: with all points each is worse than Euler."""
    levels, euler = get_grid("leading", SD, 10), get_solver("euler")
    full, bounded = (rms(get_solver(name, ending=ending), "SD", levels) for ending in ("full", "bounded"))
    assert bounded < 0.7 * rms(euler, "SD", levels) < rms(euler, "SD", levels) < full
    assert get_solver(name) == get_solver(name, ending="bounded")


@pytest.mark.parametrize("name", NOISY)
def test_noise_keeps_the_spread_of_a_gaussian(name):
    """Without a bound the standard deviation comes out up to 17 times as large as it is."""
    errors = sorted(abs(spread(get_solver(name), path, levels)) for path, _, levels in pairs(10, SOME))
    assert errors[len(errors) // 2] < 0.2 and errors[-1] < 1
    full = max(abs(spread(get_solver(name, ending="full"), path, levels)) for path, _, levels in pairs(10, SOME))
    assert full > 1.2


def test_the_bound_is_on_the_sum_of_the_weights():
    assert is_bounded((2.0, -1.0), 0.5) and not is_bounded((2.0, -1.01), 0.5)  # 3 for two points
    assert is_bounded((3.0, -3.0, 1.5), 1.0) and not is_bounded((3.0, -3.0, 1.4), 1.0)  # 5 for three
    assert not is_bounded((1.6, -0.6), 2.0) and is_bounded((1.5, -0.5), 2.0)  # half of what exceeds 1, at twice the length
    assert is_bounded((9.0, -8.0), 0.3) and is_bounded((9.0, -8.0), math.inf) and is_bounded((4.0,), 2.0)


def test_a_long_step_gives_up_its_oldest_points():
    zero = torch.zeros(1, dtype=torch.float64)
    levels = [SD.at_logsnr(v) for v in (-1.0, -0.5, 0.0, 0.5, 0.8, 3.0)]
    history = [Evaluation(i, level, zero) for i, level in enumerate(levels[:3])]

    def kept(solver, end, left=None):
        return len(solver.weights(history, levels[2], levels[end], left))

    full, bounded, count = (Multistep(3, ending=ending) for ending in ("full", "bounded", "count"))
    assert [kept(full, end) for end in (3, 4, 5)] == [3, 3, 3]
    assert [kept(bounded, end) for end in (3, 4, 5)] == [3, 2, 1]
    assert [kept(count, 3, left) for left in (4, 3, 2, 1, None)] == [3, 3, 2, 1, 3]


def test_counting_down_is_lowering_the_order_by_hand():
    """At the last two steps the orders are 2 and 1, as `lower_order_final` has them."""
    levels = get_grid("exponential", VarianceExploding(0.05, 20.0), 8)[:-1]
    mixture = Mixture.example(VarianceExploding(0.05, 20.0))
    x = 20 * torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = Multistep(3).init(x)
    for step, order in enumerate((3, 3, 3, 3, 3, 2, 1)):
        state = Multistep(order).step(mixture, _at(state, step), *levels[step : step + 2], Condition(), Context(step, 7))
    assert (sample(mixture, Multistep(3, ending="count"), x, levels) - state.x).abs().max() < 1e-12


def _at(state, step):
    return type(state)(state.x, step=step, history=state.history)


@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m", "dpmpp_3m", "deis", "dpm_fast"])
def test_usual_grids_keep_their_points(name):
    for path in (SD, PATHS["VE"]):
        for grid in ("karras", "exponential"):
            levels = get_grid(grid, path, 30)
            x = levels[0].sigma * torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            mixture = Mixture.example(path)
            full, bounded = (sample(mixture, get_solver(name, ending=e), x, levels) for e in ("full", "bounded"))
            assert name == "dpm_fast" or torch.equal(full, bounded)


def test_an_unknown_ending_is_refused():
    for name in WITH_MEMORY:
        with pytest.raises(ValueError, match=r"choose one of full, bounded, count"):
            get_solver(name, ending="last")
    with pytest.raises(ValueError, match="choose ending='full' or 'bounded'"):
        get_solver("dpm_fast", ending="count")
