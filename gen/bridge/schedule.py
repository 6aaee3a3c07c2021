"""diffusers' scheduler configs as our path, prediction and default sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gen.checkpoints import CheckpointError

# Scheduler -> the sampler that a call uses by default. PNDM's successor on the same models is 2M.
SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm_2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "dpmpp_2m",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_SPACED = ("leading", "trailing", "linspace")
# Where a scheduler's own value is not written: diffusers' defaults.
_LEADING = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")


def sampling(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """path, prediction and the part of the defaults that a scheduler config settles, as values of a `ModelConfig`.

    `path` names the file for errors. ValueError (CheckpointError) for schedulers and noise that we have no equal of.
    """
    name = config.get("_class_name")
    if name not in SAMPLERS:
        raise CheckpointError(path, f"has scheduler {name!r}; known are {', '.join(SAMPLERS)}.")
    try:
        flow = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
        found = _flow(config) if flow else _table(name, config)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(path, f"cannot be understood: {error}.") from None
    return {**found, "defaults": {**found["defaults"], "sampler": SAMPLERS[name]}}


def _flow(config: dict[str, Any]) -> dict[str, Any]:
    prediction = _PREDICTIONS.get(config.get("prediction_type", "flow_prediction"))
    if prediction != "flow":
        raise ValueError(f"flow noise with prediction_type {config.get('prediction_type')!r}, which is not flow_prediction")
    if config.get("use_dynamic_shifting"):
        options = {
            "base_tokens": _whole(config, "base_image_seq_len", 256),
            "max_tokens": _whole(config, "max_image_seq_len", 4096),
            "base_shift": _real(config, "base_shift", 0.5),
            "max_shift": _real(config, "max_shift", 1.15),
        }
        if config.get("time_shift_type", "exponential") != "exponential":
            raise ValueError(f"time_shift_type {config['time_shift_type']!r}, which is not exponential")
        if config.get("shift_terminal") is not None:
            options["terminal"] = _real(config, "shift_terminal", 0.1)
        schedule = "dynamic_shift"
    else:
        shift = _real(config, "shift", 1.0) if "shift" in config else _real(config, "flow_shift", 1.0)
        schedule, options = "uniform", {} if shift == 1 else {"shift": shift}
    defaults = {"schedule": schedule, "schedule_options": options}
    return {"path": {"type": "rectified_flow"}, "prediction": "flow", "defaults": defaults}


def _table(name: str, config: dict[str, Any]) -> dict[str, Any]:
    if config.get("trained_betas") is not None:
        raise ValueError("it brings a table of betas of its own, which is not supported")
    kind, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if kind not in _BETAS:
        raise ValueError(f"beta_schedule {kind!r} is not one of {', '.join(_BETAS)}")
    if prediction not in _PREDICTIONS or prediction == "flow_prediction":
        raise ValueError(f"prediction_type {prediction!r} is not one of epsilon, sample, v_prediction")
    path: dict[str, Any] = {"type": "variance_preserving", "betas": _BETAS[kind]}
    path["steps"] = _whole(config, "num_train_timesteps", 1000)
    if _BETAS[kind] != "cosine":
        path["start"], path["end"] = _real(config, "beta_start", 1e-4), _real(config, "beta_end", 0.02)
        path["zero_terminal_snr"] = bool(config.get("rescale_betas_zero_snr", False))
    spacing = config.get("timestep_spacing", "leading" if name in _LEADING else "linspace")
    if spacing not in _SPACED:
        raise ValueError(f"timestep_spacing {spacing!r} is not one of {', '.join(_SPACED)}")
    options: dict[str, Any] = {}
    if name in ("LCMScheduler", "TCDScheduler"):
        schedule = "trailing"  # theirs come from the top of the table whatever the spacing says
    elif config.get("use_karras_sigmas"):
        schedule = "karras"
    elif spacing == "linspace" and name.startswith(("DPMSolver", "UniPC", "DEIS")):
        schedule = "sgm_uniform"  # theirs leaves the last timestep out
    else:
        schedule = spacing
        if spacing == "leading" and (offset := _whole(config, "steps_offset", 0)):
            options["offset"] = offset
    if path.get("zero_terminal_snr") and schedule == "leading":
        schedule, options = "trailing", {}  # leading would skip the pure noise that the model was trained for
    defaults = {"schedule": schedule, "schedule_options": options}
    return {"path": path, "prediction": _PREDICTIONS[prediction], "defaults": defaults}


def _real(config: dict[str, Any], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {value!r}, not a number")
    return float(value)


def _whole(config: dict[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, not a whole number")
    return value
