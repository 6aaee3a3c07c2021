"""Our solvers, paths and grids against diffusers' schedulers, whose internals are float32."""

import numpy as np
import pytest
import torch

from samplers import Condition, Context, Multistep, RectifiedFlow, VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.grids import from_table, uniform_time
from tests.samplers.references import Replay

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TOLERANCE = 5e-6  # relative to the largest value


@pytest.fixture
def start():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def close(ours, theirs, tolerance=TOLERANCE):
    assert (ours - theirs).abs().max() / theirs.abs().max() < tolerance


def follow(scheduler, denoiser, start, levels, read, **options):
    """diffusers' loop over its timesteps with the exact model's `read` output at our levels."""
    x = start
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        prediction = denoiser(x, level, Condition(), Context())
        extra = {name: value() for name, value in options.items()}
        x = scheduler.step(read(prediction), t, x, return_dict=False, **extra)[0]
    return x


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(start, eta, spacing):
    scheduler = diffusers.DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    path = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod)
    denoiser, levels = Mixture.example(path, "eps"), get_grid(spacing, path, 20)
    theirs_noise = Replay(start)
    theirs = follow(scheduler, denoiser, start, levels, lambda p: p.eps, eta=lambda: eta, variance_noise=theirs_noise)
    close(sample(denoiser, get_solver("ddim", eta=eta), start, levels, noise=Replay(start)), theirs)


def multistep_scheduler(cls, levels, **options):
    """A multistep scheduler run on exactly our levels, whatever its own timestep rounding would have made of them."""
    scheduler = cls(**BETAS, final_sigmas_type="zero", **options)
    scheduler.set_timesteps(len(levels) - 1)
    ratios = [level.sigma / level.alpha for level in levels]
    scheduler.sigmas = torch.tensor(ratios, dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(levels) - 1).flip(0)
    scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", Multistep(1)),
        (2, "midpoint", Multistep(2, rule="midpoint")),
        (2, "heun", Multistep(2, rule="exact")),
        (3, "heun", Multistep(3, rule="published")),
    ],
)
def test_dpm_solver_multistep(start, order, kind, solver):
    path = VariancePreserving.scaled_linear()
    denoiser, levels = Mixture.example(path, "eps"), get_grid("karras", path, 20)
    scheduler = multistep_scheduler(
        diffusers.DPMSolverMultistepScheduler, levels, solver_order=order, solver_type=kind, algorithm_type="dpmsolver++"
    )
    theirs = follow(scheduler, denoiser, start, levels, lambda p: p.eps)
    close(sample(denoiser, solver, start, levels), theirs)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rule", ["bh1", "bh2"])
def test_unipc(start, order, rule):
    path = VariancePreserving.scaled_linear()
    denoiser, levels = Mixture.example(path, "eps"), get_grid("karras", path, 20)
    scheduler = multistep_scheduler(diffusers.UniPCMultistepScheduler, levels, solver_order=order, solver_type=rule)
    solver = Multistep(order, rule=rule, corrector_order=order + 1)
    # diffusers lowers the order of the step before last, which ours (like the paper) leaves alone: compare up to there
    ours = sample(denoiser, solver, start, levels[:-2])
    theirs = follow(scheduler, denoiser, start, levels[:-3], lambda p: p.eps)
    close(ours, theirs)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(start, shift):
    steps = 12
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    path = RectifiedFlow()
    levels = uniform_time(path, steps, shift=shift)
    assert np.allclose([level.t for level in levels], scheduler.sigmas, atol=1e-6)
    denoiser = Mixture.example(path, "flow")
    theirs = follow(scheduler, denoiser, start, levels, lambda p: p.raw)
    close(sample(denoiser, get_solver("euler"), start, levels), theirs)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_tables(schedule):
    ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}[schedule]
    theirs = diffusers.DDPMScheduler(beta_schedule=schedule, beta_start=ends[0], beta_end=ends[1]).alphas_cumprod.double()
    name = {"squaredcos_cap_v2": "cosine"}.get(schedule, schedule)
    path = getattr(VariancePreserving, name)()
    n = torch.arange(1000, dtype=torch.float64)
    ours = path.discrete(n).alpha ** 2
    assert torch.allclose(ours, theirs, rtol=3e-4 if name == "cosine" else 5e-5, atol=0)  # theirs is a float32 product


def test_zero_terminal_snr_table():
    scheduler = diffusers.DDIMScheduler(**BETAS, rescale_betas_zero_snr=True)
    path = VariancePreserving.scaled_linear(zero_terminal_snr=True)
    ours = path.discrete(torch.arange(1000, dtype=torch.float64)).alpha ** 2
    theirs = scheduler.alphas_cumprod.double()
    assert torch.allclose(ours, theirs, rtol=0, atol=2e-6)
    assert path.discrete(999.0).alpha == 0 and path(1.0).sigma == 1


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 20, 333])
def test_spacings(spacing, steps):
    path = VariancePreserving.linear()
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    ours = [1000 * level.t - 1 for level in get_grid(spacing, path, steps)[:-1]]
    theirs = scheduler.timesteps.tolist()
    if (spacing, steps) == ("linspace", 1):
        theirs = [999]  # diffusers takes the cleanest timestep here, from which nothing can be sampled
    assert np.allclose(ours, theirs, atol=1e-9)


def test_aligned_steps():
    from diffusers.schedulers import AysSchedules

    path = VariancePreserving.scaled_linear()
    for family, name in [("sd15", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")]:
        ours = [level.sigma / level.alpha for level in get_grid("align_your_steps", path, 10, family=family)]
        assert np.allclose(ours, AysSchedules[name], atol=1e-9)


def test_own_levels_round_trip():
    path = VariancePreserving.linear()
    levels = get_grid("karras", path, 9)
    for unit, values in [
        ("t", [v.t for v in levels]),
        ("sigma", [v.sigma / v.alpha for v in levels]),
        ("logsnr", [v.logsnr for v in levels]),
    ]:
        again = from_table(path, values, unit)
        assert np.allclose([v.t for v in again], [v.t for v in levels], atol=1e-12)
