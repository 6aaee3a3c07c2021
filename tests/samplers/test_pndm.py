"""PNDM, PLMS and iPNDM against diffusers, their orders, and what their first steps cost."""

import math
from dataclasses import replace

import pytest
import torch

from samplers import (
    Condition,
    Context,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
)
from samplers.analytic import Mixture, reference_ode
from samplers.grids import from_table
from samplers.path import NoiseLevel
from samplers.solvers.pndm import PNDM


@pytest.fixture
def start():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def relative(ours, theirs):
    return (ours - theirs).abs().max() / theirs.abs().max()


@pytest.mark.parametrize(
    ("steps", "warmup"), [(2, "heun"), (10, "heun"), (25, "heun"), (5, "runge_kutta"), (20, "runge_kutta")]
)
@pytest.mark.parametrize("kind", ["eps", "v"])
def test_pndm_is_diffusers(start, steps, warmup, kind):
    """From a v-prediction theirs mixes the v of several levels and reads eps from the mixture; ours does with predict="v"."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=warmup == "heun",
        set_alpha_to_one=True,
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[kind],
    )
    scheduler.set_timesteps(steps)
    path = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod)
    mixture, context, theirs = Mixture.example(path, kind), Context(), start
    for t in scheduler.timesteps:
        raw = mixture(theirs, path.discrete(float(t)), Condition(), Context()).raw
        theirs = scheduler.step(raw, t, theirs, return_dict=False)[0]
    ours = sample(mixture, PNDM(warmup, kind), start, get_grid("leading", path, steps), context=context)
    assert relative(ours, theirs) < 5e-6
    assert context.evaluations == len(start) * len(scheduler.timesteps) == len(start) * (steps + {"heun": 1}.get(warmup, 9))


def test_ipndm_is_diffusers(start):
    """Their levels run along a quarter circle from pure noise, a step in which theirs divides by zero: compared after it."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(16)
    sigmas = torch.sin(torch.linspace(1, 0, 17, dtype=torch.float64) * math.pi / 2) ** 2
    scheduler.betas, scheduler.alphas = sigmas, (1 - sigmas**2).sqrt()
    scheduler.set_begin_index(1)
    path = VariancePreserving.linear()
    levels = [NoiseLevel(0.0, a, s) for a, s in zip(scheduler.alphas.tolist(), sigmas.tolist(), strict=True)][1:]
    mixture, theirs = Mixture.example(path, "v"), start
    for t, level in zip(scheduler.timesteps[1:], levels, strict=False):
        v = mixture(theirs, level, Condition(), Context()).raw
        theirs = scheduler.step(v, t, theirs, return_dict=False)[0]
    ours = sample(mixture, get_solver("ipndm"), start, levels)
    assert (ours - theirs).abs().max() < 1e-12


VE = VarianceExploding(0.01, 100.0)
MIXTURE = replace(Mixture.example(VE), stds=Mixture.example(VE).stds + 0.5)


@pytest.mark.parametrize(
    ("solver", "even", "order"),
    [
        (PNDM("runge_kutta"), True, 4),
        (PNDM("heun"), True, 3),  # its Heun step and the second-order step after it leave their mark
        (PNDM("heun"), False, 2),
        (Multistep(4, predict="eps", coordinate="step"), False, 2),
    ],
    ids=str,
)
def test_slope(solver, even, order):
    """Fourth order on even steps of sigma after a fourth-order start; on other smooth grids equal weights have the second."""
    high, low = 1.0, 0.3
    start = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def levels(n):
        return [VE(high + (low - high) * i / n if even else high * (low / high) ** (i / n)) for i in range(n + 1)]

    reference = reference_ode(MIXTURE, start, VE(high), VE(low), 400)
    coarse, fine = ((sample(MIXTURE, solver, start, levels(n)) - reference).square().mean().sqrt() for n in (64, 128))
    assert abs(math.log2(coarse / fine) - order) < 0.15


@pytest.mark.parametrize("warmup", ["heun", "runge_kutta"])
def test_both_ends(warmup):
    path, z = RectifiedFlow(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixture = Mixture.example(path, "flow")
    for steps in (1, 2, 3, 60):
        context = Context()
        x = sample(mixture, PNDM(warmup), z, get_grid("uniform", path, steps), context=context)
        assert torch.isfinite(x).all()
        if warmup == "heun":
            assert context.evaluations == 6 * steps  # the step from pure noise is plain, and leaves a history
    assert mixture.log_density(x, path(0.0)).min() > -12


def test_a_short_run_to_clean_data_is_plain():
    path = VarianceExploding()
    mixture, x = Mixture.example(path), 5 * torch.ones(2, 2, dtype=torch.float64)
    levels = from_table(path, [5.0])
    ours, context = Context(), Context()
    there = sample(mixture, PNDM(), x, levels, context=ours)
    assert (there - sample(mixture, get_solver("euler"), x, levels, context=context)).abs().max() < 1e-12
    assert ours.evaluations == context.evaluations == 2


def test_settings_are_checked():
    with pytest.raises(ValueError, match="choose one of heun, runge_kutta"):
        PNDM("prk")
    path = VarianceExploding()
    with pytest.raises(ValueError, match="must differ"):
        sample(Mixture.example(path), PNDM(), torch.ones(1, 2).double(), [path(1.0), path(1.0)])
