"""What may stand in the config of a diffusers scheduler, key by key, and what becomes of it here.

Every class that a folder may name has every key of its signature with the value that diffusers takes where the config is
silent; a test compares them with the installed diffusers. A key is followed by `gen.models.bridge.schedule`, or refused where
it does not have one of a few values, or has no effect, for the reason that stands beside it. Nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_SPACED = {"timestep_spacing": "linspace", "steps_offset": 0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_K = _NOISE | {"beta_start": 0.00085, "beta_end": 0.012} | _SIGMAS | _SPACED
_DDIM = _NOISE | _CLIP | {"set_alpha_to_one": True} | _THRESHOLD | _LEADING | _ZERO_SNR
_DDPM = _NOISE | {"variance_type": "fixed_small"} | _CLIP | _THRESHOLD | _LEADING | _ZERO_SNR
_DPM = _NOISE | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"} | _THRESHOLD | _SIGMAS | _FLOW
_DPM |= _SHIFTING | {"final_sigmas_type": "zero", "lambda_min_clipped": float("-inf"), "variance_type": None}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "original_inference_steps": 50}
_LCM = _DDIM | _LATENT | {"clip_sample": False, "timestep_scaling": 10.0}
_EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}

# class -> key -> what diffusers takes where the config does not say
KEYS: dict[str, Mapping[str, Any]] = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "DEISMultistepScheduler": _NOISE
    | {"solver_order": 2, "algorithm_type": "deis", "solver_type": "logrho", "lower_order_final": True}
    | (_THRESHOLD | _SIGMAS | _FLOW | _SPACED | _SHIFTING),
    "DPMSolverMultistepScheduler": _DPM
    | {"lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False}
    | (_SPACED | _ZERO_SNR),
    "DPMSolverSinglestepScheduler": _DPM | {"lower_order_final": False},
    "DPMSolverSDEScheduler": _K | {"noise_sampler_seed": None},
    "EDMDPMSolverMultistepScheduler": _EDM
    | {"solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": True}
    | {"euler_at_final": False}
    | _THRESHOLD,
    "EDMEulerScheduler": _EDM,
    "EulerAncestralDiscreteScheduler": _NOISE | _SPACED | _ZERO_SNR,
    "EulerDiscreteScheduler": _NOISE
    | {"interpolation_type": "linear", "sigma_min": None, "sigma_max": None, "timestep_type": "discrete"}
    | {"final_sigmas_type": "zero"}
    | (_SIGMAS | _SPACED | _ZERO_SNR),
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
    }
    | (_SIGMAS | _SHIFTING),
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
    "HeunDiscreteScheduler": _K | _CLIP | {"clip_sample": False},
    "KDPM2AncestralDiscreteScheduler": _K,
    "KDPM2DiscreteScheduler": _K,
    "LCMScheduler": _LCM,
    "LMSDiscreteScheduler": _NOISE | _SIGMAS | _SPACED,
    "PNDMScheduler": _NOISE | {"skip_prk_steps": False, "set_alpha_to_one": False} | _LEADING,
    "SCMScheduler": {"num_train_timesteps": 1000, "prediction_type": "trigflow", "sigma_data": 0.5},
    "TCDScheduler": _LCM,
    "UniPCMultistepScheduler": _NOISE
    | {"solver_order": 2, "predict_x0": True, "solver_type": "bh2", "lower_order_final": True, "disable_corrector": []}
    | {"solver_p": None, "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None, "shift_terminal": None}
    | (_THRESHOLD | _SIGMAS | _FLOW | _SPACED | _ZERO_SNR | _SHIFTING),
}

# keys that may have these values only -> why no other
ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "trained_betas": ((None,), "a table of betas of its own is not supported"),
    "clip_sample": ((False,), "a latent model's predictions are larger than clip_sample_range, and clipping spoils them"),
    "thresholding": ((False,), "dynamic thresholding is meant for pixels, and latents have another range"),
    "predict_x0": ((True,), "UniPC works on x0 here"),
    "solver_p": ((None,), "UniPC makes its own predictions here"),
    "disable_corrector": (([], None), "UniPC corrects every step here"),
    "invert_sigmas": ((False, None), "no model that is opened here has inverted sigmas"),
    "timestep_scaling": (
        (10.0, 10),
        "at 10 the boundary of the consistency function is below rounding at every trained timestep",
    ),
}
# keys without effect -> why, by class and key or by key
NO_EFFECT: dict[str, str] = {
    "clip_sample_range": "clip_sample, which it belongs to, is refused",
    "dynamic_thresholding_ratio": "thresholding, which it belongs to, is refused",
    "sample_max_value": "thresholding, which it belongs to, is refused",
    "noise_sampler_seed": "random numbers come from the seed of each picture",
    "LCMScheduler.timestep_spacing": "timesteps are the trained ones",
    "TCDScheduler.timestep_spacing": "timesteps are the trained ones",
    "LCMScheduler.steps_offset": "timesteps are the trained ones",
    "TCDScheduler.steps_offset": "timesteps are the trained ones",
    "LCMScheduler.set_alpha_to_one": "the last step ends in the prediction itself",
    "TCDScheduler.set_alpha_to_one": "the last step ends at timestep 0",
    "TCDScheduler.timestep_scaling": "the sampler has no boundary scaling",
    "TCDScheduler.clip_sample": "the sampler does not clip",
    "TCDScheduler.thresholding": "the sampler does not threshold",
    "SCMScheduler.num_train_timesteps": "the clock is the noise itself",
    "SCMScheduler.sigma_data": "the pipeline divides by it what it multiplied with it",
    "UniPCMultistepScheduler.sigma_min": "diffusers reads it nowhere",
    "UniPCMultistepScheduler.sigma_max": "diffusers reads it nowhere",
    "EDMDPMSolverMultistepScheduler.num_train_timesteps": "the clock is the noise itself",
    "EDMEulerScheduler.num_train_timesteps": "the clock is the noise itself",
}
