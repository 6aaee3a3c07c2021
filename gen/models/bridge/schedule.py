"""diffusers' scheduler configs as our path, prediction, and the sampler and grid of calls that name none.

`gen.models.bridge.schedulers` has every key that a config may hold. What a scheduler does with its keys is here.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from gen.io.weights import CheckpointError
from gen.models.bridge.scheduler_config import SchedulerConfig
from gen.models.bridge.schedulers import KEYS
from samplers.registry import solver_info

SAMPLERS = tuple(KEYS)
_BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "original_sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_SPACED = ("leading", "trailing", "linspace")
_OPEN = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEIS", "UniPC")  # their timesteps are N + 1 without the last
UNSCALED = ("Euler", "Heun", "KDPM2", "LMS", "DPMSolverSDE")  # x = x0 + sigma eps, timesteps between those of the table
LARGEST = math.sqrt(2**24 - 1)  # diffusers' sigma for pure noise: alpha^2 = 2^-24
_CONVERTED = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}

Settings = tuple[str, dict[str, Any]]  # a name and its options


def sampling(path: Path, config: dict[str, Any], own_sigmas: bool | str = True, mu: str | float = "line") -> dict[str, Any]:
    """path, prediction and the part of the defaults that a scheduler config settles, as values of a `ModelConfig`; also clock,
    input_scale and sigma_data where a scheduler says them and not the network's family.

    path: of the file, for errors.
    own_sigmas: the pipeline hands its flow scheduler even sigmas, as Flux does and Stable Diffusion 3 does not.
    mu: how the pipeline finds the mu of a dynamic shift: "line", from the scheduler's two points; "empirical", FLUX.2's; or a
        number.
    ValueError (CheckpointError) for schedulers, noise and settings that we have no equal of.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in KEYS:
        raise CheckpointError(path, f"has scheduler {name!r}; known are {', '.join(KEYS)}.")
    try:
        read = SchedulerConfig(config)
        read.check()
        if read.kind.startswith("EDM"):
            fields = _edm(read)
        elif read.kind == "SCM":
            fields = _scm(read)
        elif read.kind.startswith("FlowMatch") or read.flag("use_flow_sigmas"):
            fields = _flow(read, own_sigmas, mu)
        else:
            fields = _table(read)
        schedule, schedule_options = fields.pop("schedule")
        sampler, sampler_options = _sampler(read, clean_end=schedule_options.get("final", "zero") == "zero")
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(path, f"cannot be understood: {error}.") from None
    defaults = {"schedule": schedule, "schedule_options": schedule_options, "sampler": sampler}
    return {**fields, "defaults": defaults | ({"sampler_options": sampler_options} if sampler_options else {})}


def _prediction(config: SchedulerConfig, *known: str) -> str:
    value = config.get("prediction_type", "flow_prediction")
    if value not in known:
        raise ValueError(f"prediction_type {value!r} is not one of {', '.join(known)}")
    return _PREDICTIONS[value]


def _conversion(config: SchedulerConfig) -> str:
    """Which sigmas stand in the place of the table's."""
    kinds = [kind for key, kind in _CONVERTED.items() if config.flag(key)]
    if config.flag("use_lu_lambdas"):
        kinds.append("lu")
    if len(kinds) > 1:
        raise ValueError(f"sigmas are asked to be {' and '.join(kinds)}, of which only one can be")
    return kinds[0] if kinds else "table"


def _kept(options: dict[str, Any], **usual: Any) -> dict[str, Any]:
    """Options that say something: without those that are as a grid has them anyway."""
    return {name: value for name, value in options.items() if value != usual.get(name)}


def _flow(config: SchedulerConfig, own_sigmas: bool | str, mu: str | float) -> dict[str, Any]:
    if config.prediction != "flow_prediction":
        raise ValueError(f"flow noise with prediction_type {config.prediction!r}, which is not flow_prediction")
    matched = config.kind.startswith("FlowMatch")
    kind = _conversion(config)
    if kind != "table" and not matched:
        raise ValueError(f"{kind} sigmas together with use_flow_sigmas, whose sigmas have another range")
    if matched:
        own = own_sigmas and config.name == "FlowMatchEulerDiscreteScheduler"
        start = "whole" if own and own_sigmas == "whole" else "even" if own else "trained"
    else:
        start = "open" if config.kind == "UniPC" else "below"
    options: dict[str, Any] = {"start": start, "sigmas": kind, "size": config.whole("num_train_timesteps")}
    if config.flag("use_dynamic_shifting"):
        options |= _dynamic(config, mu, linear=matched)
    else:
        options["shift"] = config.number("shift" if matched else "flow_shift")
    if start == "whole":
        options["clock"] = "unshifted"
    if config.get("shift_terminal"):
        options["terminal"] = config.number("shift_terminal")
    if not matched:
        options["clock"] = "floor"
        if config.kind == "DEIS":
            options["final"] = "last"
        elif config.one("final_sigmas_type", "zero", "sigma_min") == "sigma_min":
            beta = config.number("beta_start")
            options |= {"final": "last"} if start == "open" else {"final": "sigma", "final_sigma": math.sqrt(beta / (1 - beta))}
    return {"path": {"type": "rectified_flow"}, "prediction": "flow", "schedule": _flow_schedule(options)}


def _dynamic(config: SchedulerConfig, mu: str | float, linear: bool) -> dict[str, Any]:
    """Options of a shift for the size of the picture. linear: the scheduler may take mu itself as the shift."""
    time_shift = config.one("time_shift_type", "exponential", *(("linear",) if linear else ()))
    if not isinstance(mu, str):
        return {"shift": math.exp(mu) if time_shift == "exponential" else mu}
    if mu == "empirical":
        return {"time_shift": time_shift, "mu": mu}
    options: dict[str, Any] = {"time_shift": time_shift} | ({"mu": mu} if mu != "line" else {})
    # pipelines read the line from the scheduler's config, and have these numbers where it has none
    for ours, theirs, usual in (
        ("base_tokens", "base_image_seq_len", 256),
        ("max_tokens", "max_image_seq_len", 4096),
        ("base_shift", "base_shift", 0.25 if mu == "root" else 0.5),
        ("max_shift", "max_shift", 0.75 if mu == "root" else 1.15),
    ):
        configured = config.get(theirs) is not None
        options[ours] = (config.whole if ours.endswith("tokens") else config.number)(theirs) if configured else usual
    return options


def _flow_schedule(options: dict[str, Any]) -> Settings:
    """The grid of these options by its simplest name."""
    options = _kept(options, sigmas="table", size=1000, shift=1.0)
    if options.get("start") == "even" and not options.keys() - {"start", "shift"}:
        return "uniform", {name: value for name, value in options.items() if name == "shift"}
    line = ("base_tokens", "max_tokens", "base_shift", "max_shift")
    plain = options.get("start") == "even" and not options.keys() - {"start", "time_shift", "terminal", "mu", *line}
    if plain and options.get("time_shift") == "exponential":
        return "dynamic_shift", {name: value for name, value in options.items() if name in (*line, "terminal", "mu")}
    return "scheduler_flow", options


def _scm(config: SchedulerConfig) -> dict[str, Any]:
    """TrigFlow as rectified flow: of x = cos(t) x0 + sin(t) eps, x / (cos t + sin t) lies at the time tan t / (1 + tan t), and
    what Sana-Sprint's pipeline makes of its network's output there is x0 = x - time output."""
    if config.get("prediction_type") != "trigflow":
        raise ValueError(f"prediction_type {config.get('prediction_type')!r}, where trigflow is known")
    return {"path": {"type": "rectified_flow"}, "prediction": "flow", "schedule": ("trigflow", {})}


def _edm(config: SchedulerConfig) -> dict[str, Any]:
    if config.get("prediction_type") != "epsilon":
        raise ValueError(f"prediction_type {config.get('prediction_type')!r} with EDM's scalings, where epsilon is known")
    if config.one("final_sigmas_type", "zero", "sigma_min") != "zero":
        raise ValueError("final_sigmas_type 'sigma_min' leaves noise in the picture; set it to 'zero'")
    schedule = config.one("sigma_schedule", "karras", "exponential")
    ends = {"sigma_min": config.number("sigma_min"), "sigma_max": config.number("sigma_max")}
    rho = {"rho": config.number("rho")} if schedule == "karras" and config.number("rho") != 7 else {}
    return {
        "path": {"type": "variance_exploding", **ends},
        "prediction": "edm",
        "clock": "log_sigma/4",
        "input_scale": "edm",
        "sigma_data": config.number("sigma_data"),
        "schedule": (schedule, rho),
    }


def _table(config: SchedulerConfig) -> dict[str, Any]:
    kind = config.get("beta_schedule")
    if kind not in _BETAS:
        raise ValueError(f"beta_schedule {kind!r} is not one of {', '.join(_BETAS)}")
    prediction = _prediction(
        config, "epsilon", "sample", "v_prediction", *(("original_sample",) if config.kind == "Euler" else ())
    )
    path: dict[str, Any] = {"type": "variance_preserving", "betas": _BETAS[kind]}
    path["steps"] = config.whole("num_train_timesteps")
    if _BETAS[kind] != "cosine":
        path["start"], path["end"] = config.number("beta_start"), config.number("beta_end")
        path["zero_terminal_snr"] = config.flag("rescale_betas_zero_snr")
    elif config.flag("rescale_betas_zero_snr"):
        raise ValueError("rescale_betas_zero_snr with the cosine betas, which end near zero SNR by themselves")
    fields: dict[str, Any] = {"path": path, "prediction": prediction}
    if config.get("timestep_type", "discrete") != "discrete":
        config.one("timestep_type", "discrete", "continuous")
        if prediction == "v":  # for others diffusers keeps to timesteps
            fields["clock"] = "log_sigma/4"
    return {**fields, "schedule": _timesteps(config, path)}


def _timesteps(config: SchedulerConfig, path: dict[str, Any]) -> Settings:
    """The grid on a table."""
    if config.kind in ("LCM", "TCD"):
        options: dict[str, Any] = {"original_steps": config.whole("original_inference_steps")}
        if config.kind == "TCD":
            return "scheduler", {"spacing": "trained", **_kept(options, original_steps=50), "final": "first"}
        return "trained", _kept(options, original_steps=50)
    spacing = config.get("timestep_spacing", "linspace")
    if spacing not in _SPACED:
        raise ValueError(f"timestep_spacing {spacing!r} is not one of {', '.join(_SPACED)}")
    kind, unscaled = _conversion(config), config.is_one_of(UNSCALED)
    options = {"spacing": spacing, "rounded": not unscaled, "open_end": config.is_one_of(_OPEN), "sigmas": kind}
    if spacing == "leading":
        options["offset"] = config.whole("steps_offset") if "steps_offset" in config else 0
    elif "steps_offset" in config:
        config.whole("steps_offset")  # of the other spacings nobody reads it
    if "lambda_min_clipped" in config:
        options["clipped"] = _clipped(config, path)
    if path.get("zero_terminal_snr") and not config.is_one_of(("DDIM", "DDPM", "PNDM")):
        options["largest"] = LARGEST
    if kind != "table":
        options |= _converted(config, kind, unscaled)
        if not unscaled:  # between the table's ends, whatever the timesteps are
            options |= {"spacing": "linspace", "rounded": True, "open_end": False, "offset": 0, "clipped": 0}
    options["final"] = _final(config)
    if config.get("interpolation_type", "linear") == "log_linear":
        options |= {"bounds": "table"} if kind != "table" else {"sigmas": "log_linear", "final": "first_unscaled"}
    elif "interpolation_type" in config:
        config.one("interpolation_type", "linear", "log_linear")
    usual = {"rounded": True, "open_end": False, "sigmas": "table", "offset": 0, "clipped": 0, "bounds": "table"}
    return "scheduler", _kept(options, spacing="linspace", clock="exact", final="zero", **usual)


def _converted(config: SchedulerConfig, kind: str, unscaled: bool) -> dict[str, Any]:
    """Options of sigmas that are not the table's: their ends, and the timestep that the network is told."""
    options: dict[str, Any] = {"bounds": "spaced" if unscaled else "table"}
    if not unscaled:
        rounds = kind in ("karras", "lu") and (config.kind == "UniPC" or config.get("beta_schedule") != "squaredcos_cap_v2")
        rounds = rounds or (kind == "karras" and config.kind in ("DEIS", "DPMSolverSinglestep"))
        options["clock"] = "round" if rounds else "floor"
    elif kind == "karras" and config.kind.startswith("KDPM2"):
        options["clock"] = "round"
    if kind == "lu":
        options["sigmas"] = "exponential"  # even in the logarithm of sigma, as Lu's grid is at its rho of 1
    if config.kind == "Euler":
        options |= {end: config.number(end) for end in ("sigma_min", "sigma_max") if config.get(end) is not None}
    return options


def _final(config: SchedulerConfig) -> str:
    """Where a run ends."""
    if "set_alpha_to_one" in config:
        return "zero" if config.flag("set_alpha_to_one") else "first"
    if config.kind == "DEIS":
        return "first" if _conversion(config) == "table" else "last"
    if "final_sigmas_type" not in config or config.one("final_sigmas_type", "zero", "sigma_min") == "zero":
        return "zero"
    if config.kind == "UniPC" and _conversion(config) != "table":
        return "last"
    return "first_unscaled" if config.kind == "Euler" else "first"


def _clipped(config: SchedulerConfig, path: dict[str, Any]) -> int:
    """How many timesteps have a log-SNR below lambda_min_clipped."""
    lowest = config.number("lambda_min_clipped")
    if lowest == -math.inf:
        return 0
    from gen.models.folder import VariancePreservingPath

    table = VariancePreservingPath(**path).build().table  # type: ignore[attr-defined]
    return sum(value < lowest for value in table)


def _full(name: str) -> dict[str, Any]:
    """The option by which a solver with memory keeps all of its points to the end, as the published formulas do."""
    return {"ending": "full"} if "ending" in solver_info(name).options else {}


def _sampler(config: SchedulerConfig, clean_end: bool) -> Settings:
    """clean_end: the run ends in clean data, where the last step is of first order in any case."""
    simple = {
        "DDIM": "ddim",
        "DDIMParallel": "ddim",
        "DPMSolverSDE": "dpmpp_sde",
        "EDMEuler": "euler",
        "Euler": "euler",
        "EulerAncestral": "euler_a",
        "FlowMatchHeun": "flow_heun",
        "Heun": "heun",
        "KDPM2": "dpm_2",
        "KDPM2Ancestral": "dpm_2_a",
        "LCM": "lcm",
        "SCM": "lcm",
    }
    kind = config.kind
    if kind in simple:
        return simple[kind], {}
    if kind == "FlowMatchEuler":
        return "lcm" if config.flag("stochastic_sampling") else "euler", {}
    if kind == "TCD":
        return "tcd", {"eta": 0.0}  # pipelines hand it their own eta, which is 0
    if kind == "LMS":
        return "lms", _full("lms")
    if kind == "PNDM":
        options = {} if config.flag("skip_prk_steps") else {"warmup": "runge_kutta"}
        if config.prediction == "v_prediction":
            options["of"] = "v"  # it averages what the network says
        return "pndm", {**_full("pndm"), **options}
    if kind in ("DDPM", "DDPMParallel"):
        variance = config.one("variance_type", "fixed_small", "fixed_large", fixed_small_log="fixed_small")
        return "ddpm", {} if variance == "fixed_small" else {"variance": variance}
    if kind == "UniPC":
        return _unipc(config)
    if kind == "DEIS":
        config.one("algorithm_type", "deis", **{"dpmsolver": "deis", "dpmsolver++": "deis"})
        config.one("solver_type", "logrho", midpoint="logrho", heun="logrho", bh1="logrho", bh2="logrho")
        below = 15 if config.flag("lower_order_final") else 0
        return "multistep", {"order": _order(config), "of": "eps", "lower_below": below, **_full("multistep")}
    return _singlestep(config) if kind == "DPMSolverSinglestep" else _dpm(config, clean_end)


def _order(config: SchedulerConfig) -> int:
    order = config.whole("solver_order")
    if not 1 <= order <= 3:
        raise ValueError(f"solver_order is {order}; 1, 2 and 3 are known")
    return order


def _unipc(config: SchedulerConfig) -> Settings:
    order = _order(config)
    rule = config.one("solver_type", "bh1", "bh2", midpoint="bh2", heun="bh2", logrho="bh2")
    ending = "count" if config.flag("lower_order_final") else "full"  # in runs of any length
    options = {"order": order, "corrector_order": order + 1, "ending": ending}
    return "unipc", {**options, **({} if rule == "bh2" else {"rule": rule})}


def _variance(config: SchedulerConfig) -> None:
    if config.get("variance_type") is not None:
        raise ValueError(f"variance_type {config.get('variance_type')!r}, which this solver leaves out; set it to null")


def _solver_type(config: SchedulerConfig) -> str:
    return config.one("solver_type", "midpoint", "heun", logrho="midpoint", bh1="midpoint", bh2="midpoint")


def _dpm(config: SchedulerConfig, clean_end: bool) -> Settings:
    order, solver_type = _order(config), _solver_type(config)
    if "variance_type" in config:
        _variance(config)
    algorithm = config.one("algorithm_type", "dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", deis="dpmsolver++")
    if order == 3 and algorithm.startswith("sde"):  # of the one diffusers has none, and adds the other's last term wrongly
        raise ValueError(f"solver_order 3 with algorithm_type {algorithm!r}, which has orders 1 and 2; set it to 2")
    if not algorithm.endswith("++") and clean_end:
        raise ValueError(f"algorithm_type {algorithm!r} with final_sigmas_type 'zero', where its noise prediction has no end")
    rule = {1: "exact", 2: "midpoint" if solver_type == "midpoint" else "exact", 3: "published"}[order]
    below = 15 if config.flag("lower_order_final") else 0
    euler_last = config.flag("euler_at_final")
    noisy = algorithm.startswith("sde")
    if algorithm.endswith("++") and clean_end and order < 3:
        name = {
            (1, False): "ddim",
            (1, True): "euler_a",
            (2, False): "dpmpp_2m",
            (2, True): "dpmpp_2m_sde" if rule == "midpoint" else "dpmpp_2m_sde_heun",
        }[order, noisy]
        other = {"rule": "exact"} if name == "dpmpp_2m" and rule == "exact" else {}
        return name, {**other, **_full(name)}
    options: dict[str, Any] = {"order": order, "rule": rule, "lower_below": below, "euler_at_final": euler_last}
    if noisy:
        options["eta"] = 1.0
    if not algorithm.endswith("++"):
        options["of"] = "eps"
    if order == 3 and solver_type == "midpoint":  # of steps that have two predictions only
        options["second_order_rule"] = "midpoint"
    return "multistep", {**_kept(options, rule="exact", lower_below=0, euler_at_final=False), **_full("multistep")}


def _singlestep(config: SchedulerConfig) -> Settings:
    order, rule = _order(config), "published" if _solver_type(config) == "midpoint" else "exact"
    _variance(config)
    algorithm = config.one("algorithm_type", "dpmsolver++", "dpmsolver", deis="dpmsolver++")
    if order == 3 and rule == "published":
        raise ValueError("solver_order 3 with solver_type 'midpoint', whose middle steps differ; set solver_type to 'heun'")
    if config.get("final_sigmas_type") == "sigma_min" and not config.flag("lower_order_final"):
        raise ValueError("final_sigmas_type 'sigma_min' without lower_order_final; set lower_order_final to true")
    options = {"order": order, "of": "x0" if algorithm == "dpmsolver++" else "eps", **_full("dpm_fast")}
    return "dpm_fast", {**options, **({} if rule == "published" else {"rule": rule})}
