"""Every key of every scheduler's config is followed, refused, or without effect for a reason; and what is followed gives
diffusers' own timesteps, sigmas and pictures, from nothing but the config."""

from __future__ import annotations

import inspect
import math
import warnings
from pathlib import Path

import pytest
import torch

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.bridge.schedule import sampling
from gen.models.bridge.schedulers import KEYS, NO_EFFECT, ONLY
from gen.models.folder import model_config
from gen.pipeline.settings import Sampling, make_settings
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver, grid_info
from samplers.sample import sample
from tests.gen import pipelines
from tests.gen.test_bridge_parity import CLOSE, noise, ours, theirs

FILE = Path("scheduler_config.json")
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOWS = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
STEPS = (4, 20, 28)


def scheduler_of(name: str, **options):
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**options)


def read(scheduler, own_sigmas: bool = False, mu: str | float = "line") -> dict:
    return sampling(FILE, {**scheduler.config, "_class_name": type(scheduler).__name__}, own_sigmas, mu)


def model_of(found: dict):
    """A model's config with these settings."""
    clock = "1000t" if found["path"]["type"] == "rectified_flow" else "index"
    return model_config({"clock": clock, **found, "sample_size": 8})


@pytest.mark.parametrize("name", KEYS)
def test_the_keys_are_those_of_diffusers(name):
    """A key that a new version of diffusers brings, or a default that it changes, fails here until it has a place."""
    import diffusers

    signature = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert {key: one.default for key, one in signature.items() if key != "self"} == dict(KEYS[name])


def test_every_scheduler_of_diffusers_is_known_or_refused():
    import diffusers.schedulers

    for name in [one for one in dir(diffusers.schedulers) if one.endswith("Scheduler") and one not in KEYS]:
        with pytest.raises(CheckpointError, match=f"has scheduler '{name}'; known are DDIMScheduler, "):
            sampling(FILE, {"_class_name": name})


# another value of every key that is followed; what makes the key matter stands beside it
OTHER: dict[str, tuple] = {
    "num_train_timesteps": (500, {}),
    "beta_start": (0.001, {}),
    "beta_end": (0.03, {}),
    "beta_schedule": ("squaredcos_cap_v2", {}),
    "prediction_type": ("v_prediction", {}),
    "set_alpha_to_one": ("other", {}),
    "timestep_spacing": ("trailing", {}),
    "steps_offset": (1, {"timestep_spacing": "leading"}),
    "rescale_betas_zero_snr": (True, {}),
    "variance_type": ("fixed_large", {}),
    "solver_order": (1, {}),
    "solver_type": ("heun", {}),  # bh1 for UniPC; DEIS has one type
    "lower_order_final": ("other", {"solver_order": 3}),
    "euler_at_final": (True, {"solver_order": 3}),
    "algorithm_type": ("sde-dpmsolver++", {}),
    "use_karras_sigmas": (True, {}),
    "use_exponential_sigmas": (True, {}),
    "use_beta_sigmas": (True, {}),
    "use_lu_lambdas": (True, {}),
    "use_flow_sigmas": (True, {}),
    "flow_shift": (2.0, FLOWS),
    "use_dynamic_shifting": (True, FLOWS),
    "time_shift_type": ("linear", FLOWS | {"use_dynamic_shifting": True}),
    "final_sigmas_type": ("sigma_min", {}),
    "lambda_min_clipped": (-2.0, {}),
    "interpolation_type": ("log_linear", {}),
    "sigma_min": (0.1, {"use_karras_sigmas": True}),
    "sigma_max": (9.0, {"use_karras_sigmas": True}),
    "timestep_type": ("continuous", {"prediction_type": "v_prediction"}),
    "original_inference_steps": (25, {}),
    "skip_prk_steps": (True, {}),
    "sigma_data": (1.0, {}),
    "sigma_schedule": ("exponential", {}),
    "rho": (5.0, {}),
    "shift": (2.0, {}),
    "base_shift": (0.4, {"use_dynamic_shifting": True}),
    "max_shift": (1.0, {"use_dynamic_shifting": True}),
    "base_image_seq_len": (128, {"use_dynamic_shifting": True}),
    "max_image_seq_len": (2048, {"use_dynamic_shifting": True}),
    "shift_terminal": (0.1, FLOWS),
    "stochastic_sampling": (True, {}),
    "UniPCMultistepScheduler.solver_type": ("bh1", {}),
    "DEISMultistepScheduler.solver_type": ("adams", {}),
    "DPMSolverSinglestepScheduler.lower_order_final": (False, {"final_sigmas_type": "sigma_min", "lower_order_final": True}),
    "EDMDPMSolverMultistepScheduler.algorithm_type": ("sde-dpmsolver++", {}),
}


@pytest.mark.parametrize("name", KEYS)
def test_no_key_is_dropped_in_silence(name):
    """A value other than the usual one changes what is sampled, or is refused in a sentence; others say why they do nothing."""

    def outcome(**values):
        try:
            return sampling(FILE, {"_class_name": name, **values})
        except CheckpointError as error:
            assert str(error).startswith(f"{FILE}: cannot be understood: ") and str(error).endswith(".")
            return None

    for key, usual in KEYS[name].items():
        if key in NO_EFFECT or f"{name}.{key}" in NO_EFFECT:
            continue
        if key in ONLY:
            value = {"clip_sample": True, "timestep_scaling": 3.0}.get(key, not usual if isinstance(usual, bool) else [0.1])
            assert outcome(**{key: value}) is None, key
            continue
        value, beside = OTHER.get(f"{name}.{key}", OTHER.get(key))
        beside = {one: v for one, v in beside.items() if one in KEYS[name]}
        value = not usual if value == "other" else value
        plain, changed = outcome(**beside), outcome(**{**beside, key: value})
        assert plain is not None or beside.get("use_dynamic_shifting"), key
        assert changed is None or changed != plain, key


def test_refusals_say_which_key_and_what_to_do():
    for key, value in (("clip_sample", True), ("thresholding", True), ("trained_betas", [0.1, 0.2])):
        with pytest.raises(CheckpointError, match=rf"{key} is .*which cannot be followed: .*; set it to (false|null) if"):
            sampling(FILE, {"_class_name": "DDIMScheduler", key: value})


KARRAS, EXPONENTIAL, BETA = ({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta"))
LEADING, TRAILING = ({"timestep_spacing": kind, "steps_offset": 1} for kind in ("leading", "trailing"))
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
MANY = ({}, LEADING, TRAILING, KARRAS, EXPONENTIAL, BETA, LEADING | KARRAS, TRAILING | BETA)
GRIDS = {
    "DDIMScheduler": ({}, LEADING, {"set_alpha_to_one": False}, LEADING | {"set_alpha_to_one": False}),
    "DDPMScheduler": ({}, LEADING, TRAILING),
    "PNDMScheduler": ({"skip_prk_steps": True}, LEADING | {"skip_prk_steps": True}),
    "LCMScheduler": ({}, {"original_inference_steps": 100}),
    "TCDScheduler": ({},),
    "EulerDiscreteScheduler": (
        *MANY,
        {"final_sigmas_type": "sigma_min"},
        {"interpolation_type": "log_linear"},
        KARRAS | {"sigma_min": 0.05, "sigma_max": 11.0},
        TRAILING | ZERO,
        KARRAS | {"timestep_type": "continuous", "prediction_type": "v_prediction", "sigma_min": 0.002, "sigma_max": 120.0},
    ),
    "EulerAncestralDiscreteScheduler": ({}, LEADING, TRAILING, TRAILING | ZERO),
    "HeunDiscreteScheduler": MANY,
    "LMSDiscreteScheduler": ({}, LEADING, TRAILING, EXPONENTIAL),
    "DPMSolverMultistepScheduler": (
        *MANY,
        {"use_lu_lambdas": True},
        {"final_sigmas_type": "sigma_min"},
        KARRAS | {"final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -2.0},
        {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        {"beta_schedule": "squaredcos_cap_v2"} | KARRAS,
        TRAILING | ZERO,
        FLOWS,
        FLOWS | {"final_sigmas_type": "sigma_min"},
    ),
    "DPMSolverSinglestepScheduler": ({}, KARRAS, EXPONENTIAL, FLOWS),
    "DEISMultistepScheduler": (*MANY, FLOWS),
    "UniPCMultistepScheduler": (*MANY, KARRAS | {"final_sigmas_type": "sigma_min"}, FLOWS, FLOWS | {"shift_terminal": 0.1}),
    "FlowMatchEulerDiscreteScheduler": (
        {},
        {"shift": 3.0},
        {"shift": 3.0, "shift_terminal": 0.1},
        {"shift": 3.0} | KARRAS,
        {"shift": 3.0} | EXPONENTIAL,
        {"shift": 3.0} | BETA,
    ),
    "EDMEulerScheduler": ({}, {"sigma_schedule": "exponential"}),
    "EDMDPMSolverMultistepScheduler": ({}, {"sigma_max": 40.0}),
}


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, several in GRIDS.items() for options in several])
def test_timesteps_and_sigmas_are_diffusers(name, options):
    """The network is told the same timesteps, and x holds the same noise, at every number of steps tried."""
    base = {} if name.startswith(("FlowMatch", "EDM")) else SD | ({"clip_sample": False} if name.startswith("DD") else {})
    scheduler = scheduler_of(name, **{**base, **options})
    found = read(scheduler)
    config = model_config(
        {"clock": "1000t" if found["path"]["type"] == "rectified_flow" else "index", **found, "sample_size": 8}
    )
    path, defaults = config.path.build(), config.defaults
    for steps in STEPS if options.get("beta_schedule") else (*STEPS, 13):  # one cosine timestep of 13 is cut at a whole number
        scheduler.set_timesteps(steps)
        levels = get_grid(defaults.schedule, path, steps, **defaults.schedule_options)
        assert len(levels) == steps + 1
        told = torch.tensor([_told(config, path, level) for level in levels[:-1]])
        timesteps = scheduler.timesteps.float()
        if name == "HeunDiscreteScheduler":
            timesteps = torch.cat([timesteps[:1], timesteps[1::2]])
        if name == "PNDMScheduler":  # the second timestep stands twice
            timesteps = torch.cat([timesteps[:1], timesteps[2:]])
        torch.testing.assert_close(told, timesteps, rtol=1e-5, atol=2e-3)
        if hasattr(scheduler, "sigmas"):
            sigmas = scheduler.sigmas
            if name == "HeunDiscreteScheduler":
                sigmas = torch.cat([sigmas[:1], sigmas[1::2]])
            flow = isinstance(path, RectifiedFlow)
            ours = torch.tensor([level.sigma if flow else level.sigma / level.alpha for level in levels])
            steep = options.get("rescale_betas_zero_snr") or options.get("beta_schedule")
            rounding = 4e-4 if steep else 5e-5  # of their betas, in single precision
            torch.testing.assert_close(ours, sigmas[: steps + 1], rtol=rounding, atol=2e-6)


def _told(config, path, level) -> float:
    from samplers.denoiser import CLOCKS

    return CLOCKS[config.clock](level, path)


PLAIN = {"clip_sample": False}
RUNS = [
    ("stable_diffusion", "DDIMScheduler", SD | PLAIN | LEADING | {"set_alpha_to_one": False}),
    ("stable_diffusion", "DDPMScheduler", SD | PLAIN),
    ("stable_diffusion", "PNDMScheduler", SD | LEADING | {"skip_prk_steps": True}),
    ("stable_diffusion", "PNDMScheduler", SD | LEADING | {"skip_prk_steps": True, "prediction_type": "v_prediction"}),
    ("stable_diffusion", "EulerDiscreteScheduler", SD),
    ("stable_diffusion", "EulerDiscreteScheduler", SD | LEADING | KARRAS),
    ("stable_diffusion", "EulerDiscreteScheduler", SD | {"final_sigmas_type": "sigma_min"}),
    ("stable_diffusion", "EulerDiscreteScheduler", SD | {"interpolation_type": "log_linear"}),
    ("stable_diffusion", "EulerDiscreteScheduler", SD | TRAILING | ZERO),
    ("stable_diffusion", "EulerAncestralDiscreteScheduler", SD | TRAILING),
    ("stable_diffusion", "HeunDiscreteScheduler", SD),
    ("stable_diffusion", "HeunDiscreteScheduler", SD | KARRAS),
    ("stable_diffusion", "KDPM2DiscreteScheduler", SD),
    ("stable_diffusion", "KDPM2DiscreteScheduler", SD | KARRAS),
    ("stable_diffusion", "KDPM2AncestralDiscreteScheduler", SD | LEADING),
    ("stable_diffusion", "LMSDiscreteScheduler", SD),
    ("stable_diffusion", "DPMSolverSDEScheduler", SD | KARRAS),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | LEADING),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | KARRAS | {"solver_type": "heun"}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"solver_order": 1}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"solver_order": 3}),
    (
        "stable_diffusion",
        "DPMSolverMultistepScheduler",
        SD | {"solver_order": 3, "solver_type": "heun", "euler_at_final": True},
    ),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"algorithm_type": "sde-dpmsolver++"}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("stable_diffusion", "DPMSolverMultistepScheduler", SD | TRAILING | ZERO),
    ("stable_diffusion", "DPMSolverSinglestepScheduler", SD),
    ("stable_diffusion", "DPMSolverSinglestepScheduler", SD | KARRAS | {"solver_order": 3, "solver_type": "heun"}),
    ("stable_diffusion", "DEISMultistepScheduler", SD),
    ("stable_diffusion", "DEISMultistepScheduler", SD | LEADING | {"solver_order": 3}),
    ("stable_diffusion", "DEISMultistepScheduler", SD | KARRAS),
    ("stable_diffusion", "UniPCMultistepScheduler", SD),
    ("stable_diffusion", "UniPCMultistepScheduler", SD | LEADING | {"solver_order": 3}),
    ("stable_diffusion", "UniPCMultistepScheduler", SD | KARRAS | {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("stable_diffusion", "LCMScheduler", SD),
    ("stable_diffusion", "TCDScheduler", SD),
    ("sdxl", "EulerDiscreteScheduler", SD | LEADING),
    ("sdxl", "EDMEulerScheduler", {}),
    ("sdxl", "EDMDPMSolverMultistepScheduler", {}),
    ("pixart", "DPMSolverMultistepScheduler", {}),
    ("dit", "DDIMScheduler", PLAIN),
    ("sd3", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("sd3", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ("sd3", "FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ("sd3", "UniPCMultistepScheduler", FLOWS),
    ("sd3", "UniPCMultistepScheduler", FLOWS | {"use_dynamic_shifting": True, "solver_order": 3}),
    ("sd3", "DPMSolverMultistepScheduler", FLOWS | {"use_dynamic_shifting": True}),
    ("sd3", "DEISMultistepScheduler", FLOWS),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0}),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "time_shift_type": "linear"}),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"shift": 2.0, "shift_terminal": 0.1}),
    ("flux", "FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("sana", "DPMSolverMultistepScheduler", FLOWS),
    ("sana", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
]


def without_noise(monkeypatch) -> None:
    """Solvers that add noise add none, in both: what is left of a step can be compared."""
    import sys

    for module in [one for name, one in sys.modules.items() if name.startswith("diffusers.schedulers.scheduling_")]:
        if hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, **options: torch.zeros(shape))
        if hasattr(module, "BrownianTreeNoiseSampler"):
            monkeypatch.setattr(module, "BrownianTreeNoiseSampler", lambda x, *_: lambda *_: torch.zeros_like(x))


def network(x: torch.Tensor, time: torch.Tensor, condition=None, context=None) -> torch.Tensor:
    """Smooth in x and in the time, which it reads on any clock."""
    phase = (time.double() / 300).to(x.dtype).view(-1, 1, 1, 1)
    return torch.tanh(0.7 * x + 0.4 * x.roll(1, -1) * x.roll(1, -2) + torch.sin(phase))


TOKENS = 1024
UNSCALED = ("EulerDiscrete", "EulerAncestral", "Heun", "KDPM2", "LMS", "EDM", "DPMSolverSDE")  # x there is x0 + sigma eps


def their_run(scheduler, x: torch.Tensor, steps: int, own_sigmas: bool) -> torch.Tensor:
    """The loop of every pipeline: timesteps, noise at the first of them, scaled input, network, step."""
    options = {}
    if scheduler.config.get("use_dynamic_shifting"):
        options["mu"] = 0.5 + (1.15 - 0.5) * (TOKENS - 256) / (4096 - 256)
    if own_sigmas:
        options["sigmas"] = [1 - i / steps for i in range(steps)]
    scheduler.set_timesteps(steps, **options)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    for time in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
        eta = {"eta": 0.0} if "eta" in inspect.signature(scheduler.step).parameters else {}
        x = scheduler.step(network(scaled, time), time, x, **eta, return_dict=False)[0]
    return x


@pytest.mark.parametrize(
    ("family", "name", "options"), RUNS, ids=[f"{family}-{name[:-9]}-{i}" for i, (family, name, _) in enumerate(RUNS)]
)
def test_runs_at_defaults_are_diffusers(monkeypatch, family, name, options):
    """Schedulers by numbers of steps, with no grid handed over: the scheduler's config is all that we have."""
    own_sigmas = family == "flux"
    config = model_of(read(scheduler_of(name, **options), own_sigmas))
    without_noise(monkeypatch)
    denoiser, defaults = config.denoiser(network), config.defaults
    tokens = {"tokens": TOKENS} if "tokens" in grid_info(defaults.schedule).options else {}
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    solver = get_solver(defaults.sampler, **defaults.sampler_options)
    for steps in STEPS:
        levels = get_grid(defaults.schedule, denoiser.path, steps, **{**tokens, **defaults.schedule_options})
        scheduler = scheduler_of(name, **options)
        reference = their_run(scheduler, x, steps, own_sigmas)
        begun = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        if name.startswith(UNSCALED):
            begun = begun * levels[0].alpha
        found = sample(denoiser, solver, begun, levels, noise=lambda s, t: torch.zeros_like(x))
        # DEIS's logarithms of a flow's sigma cancel there in single precision; in double the two agree to 1e-12
        close = 1e-3 if name.startswith("DEIS") and options.get("use_flow_sigmas") else 1e-4
        assert (found - reference).abs().max() <= close * max(1.0, float(reference.std())), f"{steps} steps"


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_consistency_samplers_take_their_own_timesteps(bridged, sampler):
    """Whatever the grid of the model's own scheduler; another is taken where the caller names one."""
    _, generator = bridged("stable_diffusion")

    def told(**options):
        settings = make_settings(generator, Sampling(num_inference_steps=4, sampler=sampler, **options), 32, 32)
        return [round(1000 * level.t - 1) for level in settings.levels[:-1]]

    assert told() == [999, 759, 499, 259]
    assert told(schedule="trailing") == [999, 749, 499, 249]
    _, flow = bridged("sd3")
    levels = make_settings(flow, Sampling(num_inference_steps=4, sampler=sampler), 32, 32).levels
    assert [round(level.t, 9) for level in levels] == [1.0, 0.9, 0.75, 0.5, 0.0]  # even, shifted by the model's 3


def test_distilled_models_take_few_steps_where_a_config_says_so():
    from gen.models.bridge.pipeline import few_steps

    turbo = {"_name_or_path": "/models/sdxl-turbo/unet"}
    usual = {"num_inference_steps": 30, "guidance_scale": 5.0}
    plain = {"_name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"}
    assert few_steps(usual, (plain, {}), {}) == usual
    assert few_steps(usual, ({}, turbo), {}) == {"num_inference_steps": 1, "guidance_scale": 1.0}
    assert few_steps(usual, ({}, turbo), {}, {"turbo": 8})["num_inference_steps"] == 8
    around = {"_name_or_path": "/turbo/models/sdxl/unet"}  # a folder around it is not its name
    assert few_steps(usual, ({}, around), {}) == usual
    assert few_steps(usual, ({"_name_or_path": "ByteDance/SDXL-Lightning"}, plain), {})["num_inference_steps"] == 4
    assert few_steps(usual, (plain,), {"_class_name": "TCDScheduler"}) == {"num_inference_steps": 4, "guidance_scale": 1.0}
    embedded = {"num_inference_steps": 28, "guidance": "embedded", "guidance_scale": 3.5}
    assert few_steps(embedded, (plain,), {"_class_name": "LCMScheduler"}) == embedded


@pytest.mark.parametrize(
    ("folder", "steps"),
    [
        ("models/Z-Turbo", 8),
        ("hub/models--a--Z-Turbo/snapshots/0123", 8),
        ("turbo/Z", 30),  # a folder around it is not its name
        ("hub/models--a--Z/snapshots/turbo", 30),
    ],
)
def test_the_name_of_a_folder_or_repository_says_it_too(folder, steps):
    from gen.models.bridge.pipeline import few_steps

    usual = {"num_inference_steps": 30, "guidance_scale": 5.0}
    assert few_steps(usual, ({}, Path(folder)), {}, {"turbo": 8})["num_inference_steps"] == steps


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("tokens", [64, 4096, 4300, 4301, 8100])
@pytest.mark.parametrize("options", [{}, {"shift_terminal": 0.1}, {"time_shift_type": "linear"}])
def test_the_empirical_shift_is_that_of_flux2(steps, tokens, options):
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True, **options)
    found = read(scheduler, own_sigmas=True, mu="empirical")["defaults"]
    sigmas = [1 - i / steps for i in range(steps)]
    scheduler.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(tokens, steps))
    levels = get_grid(found["schedule"], RectifiedFlow(), steps, tokens=tokens, **found["schedule_options"])
    ours = torch.tensor([level.sigma for level in levels])
    torch.testing.assert_close(ours, scheduler.sigmas, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("tokens", [64, 4096, 8100])
@pytest.mark.parametrize(
    "options", [{"use_dynamic_shifting": True}, {"shift": 3.0}, {"use_dynamic_shifting": True, "shift_terminal": 0.1}]
)
def test_the_grid_and_the_clock_of_cogview4(steps, tokens, options):
    """Whole timesteps, of which the network is told those before the shift."""
    import numpy as np
    from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift

    scheduler = scheduler_of(
        "FlowMatchEulerDiscreteScheduler", time_shift_type="linear", base_shift=0.25, max_shift=0.75, **options
    )
    if steps == 1 and "shift_terminal" in options:
        pytest.skip("one step has no terminal")
    found = read(scheduler, own_sigmas="whole", mu="root")["defaults"]
    timesteps = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
    scheduler.set_timesteps(timesteps=timesteps, sigmas=timesteps / 1000, mu=calculate_shift(tokens))
    given = {"tokens": tokens} if "use_dynamic_shifting" in options else {}
    levels = get_grid(found["schedule"], RectifiedFlow(), steps, **given, **found["schedule_options"])
    torch.testing.assert_close(torch.tensor([v.sigma for v in levels]), scheduler.sigmas, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(torch.tensor([1000 * v.t for v in levels[:-1]]), scheduler.timesteps, atol=1e-3, rtol=0)


def test_a_mu_of_the_pipelines_own_is_a_shift():
    """Distilled Krea 2: 1.15, whatever the size of the picture."""
    scheduler = scheduler_of("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    found = read(scheduler, own_sigmas=True, mu=1.15)["defaults"]
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.15)
    levels = get_grid(found["schedule"], RectifiedFlow(), 4, **found["schedule_options"])
    torch.testing.assert_close(torch.tensor([level.sigma for level in levels]), scheduler.sigmas)


def test_an_edm_scheduler_says_the_clock_and_the_scales(tmp_path):
    """Playground's way: an SDXL folder whose scheduler, not its family, tells the network's clock."""
    pipeline = pipelines.sdxl()
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler_of("EDMEulerScheduler", sigma_max=40.0)
    generator = Generator.from_pretrained(pipelines.save(pipeline, tmp_path / "sdxl"), device="cpu", dtype="float32")
    config = generator.config
    assert (config.clock, config.input_scale, config.sigma_data, config.prediction) == ("log_sigma/4", "edm", 0.5, "edm")
    x = noise(generator, 1)
    reference = theirs("sdxl", pipeline, x, 2.0, num_inference_steps=4)
    start = x * math.hypot(40.0, 1) / 40.0  # the pipeline begins with noise of that size
    found = ours("sdxl", generator, start * generator_sigma(generator), 2.0, num_inference_steps=4)
    torch.testing.assert_close(found, reference, **CLOSE)


def generator_sigma(generator) -> float:
    """What `ours` divides by, as other pipelines begin with x itself."""
    return make_settings(generator, Sampling(num_inference_steps=4), 32, 32).levels[0].sigma
