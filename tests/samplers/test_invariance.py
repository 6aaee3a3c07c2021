"""One trajectory, whatever the path; and both ends of a path without an epsilon."""

import math

import pytest
import torch

from samplers import SOLVERS as SOLVER_ROWS
from samplers import (
    Condition,
    Context,
    Heun,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
    solver_names,
)
from samplers.analytic import Gaussian, Mixture
from samplers.grids import uniform_time
from tests.samplers.references import Replay

VE, VP, RF = VarianceExploding(), VariancePreserving.linear(), RectifiedFlow()
ZERO_SNR = VariancePreserving.scaled_linear(zero_terminal_snr=True)
# by design on the path's own clock (`own_clock` too), or stopping at the path's own bounds on the way to clean data
OWN = ("tcd", "flow_midpoint", "flow_heun", "flow_ralston", "flow_rk4", "dpm_adaptive")
SOLVERS = {name: get_solver(name) for name in solver_names() if name not in OWN and not SOLVER_ROWS[name].own_clock} | {
    "churn": Heun(s_churn=3.0),
    "order 4": Multistep(4, corrector_order=5),
    "ancestral 3": Multistep(3, eta=0.5, noise="ancestral"),
}


def noise_like(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", [VP, RF], ids=["VP", "RF"])
def test_same_logsnr_grid_same_result(name, path):
    """VE = VP = flow: x / alpha follows the same numbers, up to a level with finite log-SNR and on to clean data."""
    grid = [-3.5, -2.4, -1.9, -0.6, 0.1, 1.2, 2.0]
    z = noise_like(5, 2)

    def run(path, end):
        levels = [path.at_logsnr(v) for v in (*grid, end)]
        x = sample(Mixture.example(path), SOLVERS[name], levels[0].sigma * z, levels, noise=Replay(z))
        return x / levels[-1].alpha, z * levels[0].sigma / levels[0].alpha

    for end in (3.3, math.inf):
        (there, start_there), (here, start_here) = run(VE, end), run(path, end)
        assert torch.allclose(start_there, start_here, atol=1e-12)
        assert (there - here).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("path", "kind"), [(RF, "x0"), (RF, "v"), (RF, "flow"), (ZERO_SNR, "x0"), (ZERO_SNR, "v")], ids=lambda v: str(v)[:9]
)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_both_ends_at_every_order(order, eta, path, kind):
    """From exact pure noise to exact clean data: finite, and the data."""
    z = noise_like(6, 2)
    levels = uniform_time(path, 40)
    assert levels[0].alpha == 0 and levels[-1].sigma == 0
    mixture = Mixture.example(path, kind)
    for solver in (
        Multistep(order, eta=eta),
        Multistep(order, eta=eta, corrector_order=order + 1),
        Multistep(order, eta, "ancestral"),
    ):
        x = sample(mixture, solver, z, levels, noise=Replay(z))
        assert torch.isfinite(x).all()
        assert mixture.log_density(x, path(0.0)).min() > -12  # every point lies within a component
    point = Gaussian(path, torch.tensor([1.0, -2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64), kind)
    x = sample(point, Multistep(order, eta=eta), z, levels, noise=Replay(z))
    assert (x - point.mean).abs().max() < 1e-12


@pytest.mark.parametrize("path", [RF, ZERO_SNR], ids=["flow", "zero SNR"])
def test_heun_at_both_ends(path):
    """First and last steps are Euler steps; the result converges to the exact flow of a Gaussian."""
    gaussian = Gaussian(path, torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64))
    z = noise_like(6, 2)
    context = Context()
    x = sample(gaussian, Heun(), z, uniform_time(path, 100), context=context)
    assert torch.allclose(x, gaussian.ode(z, path(1.0), path(0.0)), atol=0.03)
    assert context.evaluations == 6 * (1 + 98 * 2 + 1)


@pytest.mark.parametrize(("order", "tolerance"), [(1, 0.05), (2, 4e-3), (3, 3e-3), (4, 3e-3)])
def test_gaussian_flow_from_pure_noise(order, tolerance):
    """The exact solution is known from t = 1 to t = 0: x0 = mean + std z."""
    gaussian = Gaussian(RF, torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64))
    z = noise_like(6, 2)
    x = sample(gaussian, Multistep(order), z, uniform_time(RF, 100))
    assert (x - (gaussian.mean + gaussian.std * z)).abs().max() < tolerance


def test_eps_at_pure_noise_is_refused():
    with pytest.raises(ValueError, match="eps prediction says nothing"):
        sample(Mixture.example(RF, "eps"), get_solver("euler"), noise_like(2, 2), uniform_time(RF, 4))


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "heun", "unipc"])
def test_every_prediction_kind_gives_the_same_run(kind, name):
    levels = get_grid("karras", VP, 9)
    z = noise_like(4, 2)
    mixture = Mixture.example(VP)
    expected = sample(mixture, get_solver(name), z, levels)
    assert (sample(mixture.predicting(kind), get_solver(name), z, levels) - expected).abs().max() < 1e-10


def test_there_and_back():
    """A solver without noise also runs towards noise: inversion undoes sampling to the order of the method."""
    mixture, x = Mixture.example(VP), noise_like(4, 2)
    levels = [VP.at_logsnr(-2 + i / 100) for i in range(401)]
    data = sample(mixture, Multistep(2), x, levels)
    assert (sample(mixture, Multistep(2), data, levels[::-1]) - x).abs().max() < 2e-3


def test_wrong_directions_are_refused():
    a, b = VP.at_logsnr(-1.0), VP.at_logsnr(1.0)
    denoiser, x = Mixture.example(VP), noise_like(2, 2)
    for solver in (Multistep(1, eta=1.0), Heun()):
        with pytest.raises(ValueError, match="fall in noise"):
            sample(denoiser, solver, x, [b, a], noise=Replay(x))
    with pytest.raises(ValueError, match="must differ"):
        sample(denoiser, Multistep(2), x, [a, a])
    with pytest.raises(ValueError, match="between finite levels"):
        sample(denoiser, Multistep(2), x, [VP(0.0), a])
    with pytest.raises(TypeError, match="plain floats"):
        Multistep(2).step(denoiser, Multistep(2).init(x), VP(torch.ones(2)), b, Condition(), Context())


@pytest.mark.parametrize(
    "options",
    [
        {"order": 0},
        {"order": True},
        {"corrector_order": 1},
        {"rule": "extact"},
        {"noise": "brown"},
        {"eta": -1.0},
        {"eta": math.nan},
        {"eta": 1.5, "noise": "ancestral"},
        {"s_noise": math.inf},
    ],
)
def test_settings_are_checked(options):
    with pytest.raises(ValueError, match=r"choose|give"):
        Multistep(**options)


def test_heun_settings_are_checked():
    with pytest.raises(ValueError, match="s_churn"):
        Heun(s_churn=-1)
    with pytest.raises(ValueError, match="s_tmin"):
        Heun(s_tmin=2, s_tmax=1)
