"""Runge-Kutta on the path's clock: against diffusers, exact answers and its own order."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from samplers import Condition, Context, Heun, RectifiedFlow, VarianceExploding, VariancePreserving, get_solver, sample
from samplers.analytic import Gaussian, Mixture, reference_ode
from samplers.grids import from_table, uniform_time
from samplers.solvers.runge_kutta import METHODS, RungeKutta
from samplers.tableaus import TABLEAUS

RF, ZERO_SNR = RectifiedFlow(), VariancePreserving.scaled_linear(zero_terminal_snr=True)
MEAN, STD = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(ours, theirs, tolerance=5e-6):
    assert (ours - theirs).abs().max() / theirs.abs().max() < tolerance


@pytest.mark.parametrize("method", METHODS)
def test_tableaus_are_consistent(method):
    """Row sums are nodes, and the order conditions up to 2 hold (to 4 for rk4: sum b c^2 = 1/3, sum b c^3 = 1/4)."""
    t = TABLEAUS[method]
    assert [sum(row) for row in t.stages] == pytest.approx(t.nodes)
    for k in range(t.order):
        assert sum(b * c**k for b, c in zip(t.weights, t.nodes, strict=True)) == pytest.approx(1 / (k + 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", [RF, VarianceExploding(0.01, 10.0)], ids=["flow", "VE"])
def test_order(method, path):
    mixture = replace(Mixture.example(path), stds=Mixture.example(path).stds + 0.5)
    first, last = (path(0.9), path(0.2)) if path is RF else (path(4.0), path(0.5))
    start = first.sigma * normals(16, 2)
    expected = reference_ode(mixture, start, first, last, 400)

    def error(steps):
        levels = [path(first.t + (last.t - first.t) * i / steps) for i in range(steps + 1)]
        return (sample(mixture, RungeKutta(method), start, levels) - expected).square().mean().sqrt()

    n = 16 if TABLEAUS[method].order == 4 else 64
    assert abs(math.log2(error(n) / error(2 * n)) - TABLEAUS[method].order) < 0.15


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_is_diffusers_flow_match_heun(shift):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    ts = [scheduler.sigmas[0].item(), *scheduler.sigmas[1:-1:2].tolist()]
    levels, x = [RF(t) for t in (*ts, 0.0)], normals(6, 2, seed=1)
    denoiser, ours = Mixture.example(RF, "flow"), sample(Mixture.example(RF, "flow"), RungeKutta("heun"), x, levels)
    for t, sigma in zip(scheduler.timesteps, [ts[0], *np.repeat(ts[1:], 2)], strict=True):
        x = scheduler.step(denoiser(x, RF(float(sigma)), Condition(), Context()).raw, t, x, return_dict=False)[0]
    close(ours, x)


@pytest.mark.parametrize(
    ("name", "solver"), [("HeunDiscreteScheduler", Heun()), ("KDPM2DiscreteScheduler", get_solver("dpm_2"))]
)
def test_two_stage_schedulers_in_sigma(name, solver):
    """diffusers' k-diffusion ports, which hold x in VE scaling; their middle levels come from float32 logarithms."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(**BETAS)
    scheduler.set_timesteps(12)
    sigmas = [scheduler.sigmas[0].item(), *scheduler.sigmas[1:-1:2].tolist()]
    path = VarianceExploding(0.02, 20.0)
    levels = from_table(path, sigmas, "sigma")
    denoiser, x = Mixture.example(path, "eps"), 14 * normals(6, 2, seed=1)
    ours = sample(denoiser, solver, x, levels)
    for i, t in enumerate(scheduler.timesteps):
        if scheduler.state_in_first_order:
            sigma = scheduler.sigmas[0] if i == 0 else scheduler.sigmas[scheduler.step_index]
        elif name == "HeunDiscreteScheduler":
            sigma = scheduler.sigmas[scheduler.step_index]
        else:
            sigma = scheduler.sigmas_interpol[scheduler.step_index]
        prediction = denoiser(x, path(sigma.item()), Condition(), Context()).eps
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    close(ours, x, 2e-5)


@pytest.mark.parametrize(("path", "kind"), [(RF, "flow"), (RF, "x0"), (ZERO_SNR, "v")], ids=lambda v: str(v)[:9])
@pytest.mark.parametrize("method", METHODS)
def test_both_ends(method, path, kind):
    """From exact pure noise to exact clean data: finite, the data, one evaluation in the last step."""
    z, levels, context = normals(6, 2), uniform_time(path, 40), Context()
    mixture = Mixture.example(path, kind)
    x = sample(mixture, RungeKutta(method), z, levels, context=context)
    assert torch.isfinite(x).all() and mixture.log_density(x, path(0.0)).min() > -12
    assert context.evaluations == 6 * (39 * len(TABLEAUS[method].nodes) + 1)
    if path is RF:
        point = Gaussian(path, MEAN, torch.zeros_like(MEAN), kind)
        assert (sample(point, RungeKutta(method), z, levels) - MEAN).abs().max() < 1e-12


@pytest.mark.parametrize(("method", "tolerance"), [("midpoint", 2e-3), ("heun", 2e-3), ("ralston", 2e-3), ("rk4", 2e-3)])
def test_gaussian_flow_from_pure_noise(method, tolerance):
    gaussian, z = Gaussian(RF, MEAN, STD), normals(6, 2)
    x = sample(gaussian, RungeKutta(method), z, uniform_time(RF, 100))
    assert (x - (MEAN + STD * z)).abs().max() < tolerance


def test_straight_lines_are_exact():
    """The flow to a point mass is constant along each line: any method, any steps."""
    point, z = Gaussian(RF, MEAN, torch.zeros_like(MEAN)), normals(6, 2)
    for method in METHODS:
        x = sample(point, RungeKutta(method), z, [RF(1.0), RF(0.7), RF(0.1)])
        assert (x - RF(0.1).mix(MEAN, z)).abs().max() < 1e-14


def test_it_also_runs_towards_noise():
    mixture, x = Mixture.example(RF), 0.2 * normals(4, 2)
    levels = [RF(0.2 + i / 100) for i in range(61)]
    noise = sample(mixture, RungeKutta("rk4"), x, levels)
    assert (sample(mixture, RungeKutta("rk4"), noise, levels[::-1]) - x).abs().max() < 1e-4


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="choose one of midpoint, heun, ralston, rk4"):
        RungeKutta("euler")
    x = normals(1, 2)
    with pytest.raises(ValueError, match="levels must differ"):
        sample(Mixture.example(RF), RungeKutta(), x, [RF(0.5), RF(0.5)])
    with pytest.raises(ValueError, match="where a run ends"):
        sample(Mixture.example(RF), RungeKutta(), x, [RF(0.0), RF(0.5)])
