"""What all pictures of a call share, checked: the sampler, its noise levels, guidance, tasks (`gen.pipeline.task_table`)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from gen.io.validators import MAX_SCALE, MAX_STEPS, check_float, check_int, check_interval, check_option_values, check_size
from gen.pipeline.guidance_stack import GuidanceStack, with_usual_rule
from gen.pipeline.scenes import check_syntax
from gen.pipeline.task_table import TaskArgs, frame_of, steps_of, with_tasks
from gen.pipeline.types import Settings
from samplers.noise import check_kind
from samplers.registry import get_grid, get_solver, grid_info, parse_sampler, solver_info

if TYPE_CHECKING:
    from gen.models.folder import Defaults
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe
    from samplers.path import NoiseLevel


# solvers whose pictures fit their prompts at least 7 % worse than the default solver's, in 12 steps of the default model
# (docs/samplers.md has the table, `python -m tests.benchmarks.settings --axes solver --steps 12` measures it)
ASTRAY = {
    *("comfy:lms", "comfy:ipndm_v", "comfy:deis", "comfy:uni_pc", "comfy:uni_pc_bh2", "comfy:ddpm", "comfy:sa_solver"),
    *("ipndm", "pndm", "edict", "sa_solver", "dpm_2_a", "res_multistep_ancestral"),
    *("euler_cfg_pp", "dpmpp_2m_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "gradient_estimation_cfg_pp"),
    *("res_multistep_cfg_pp", "res_multistep_ancestral_cfg_pp"),
}
ENOUGH = 30  # steps from which nothing is said


def warn_sampler(sampler: str, steps: int) -> None:
    """A warning where a sampler is known to spoil pictures at so few steps."""
    if sampler in ASTRAY and steps < ENOUGH:
        warnings.warn(
            f"The sampler {sampler!r} is known to spoil pictures at few steps ({steps} here); take more, or another "
            "sampler such as dpmpp_2m.",
            stacklevel=4,
        )


@dataclass(frozen=True)
class Sampling:
    """The sampler, its levels and guidance, as a call gives them or a recipe has them; None is the model's default.

    recorded: by a recipe, which says what was computed."""

    num_inference_steps: Any = None
    sampler: Any = None
    sampler_options: Any = None
    schedule: Any = None
    schedule_options: Any = None
    guidance_scale: Any = None
    guidance_interval: Any = None
    guidance: Any = None
    guidance_options: Any = None
    cache: Any = None
    cache_options: Any = None
    batch_invariant: Any = None
    prompt_syntax: Any = None
    noise_kind: Any = None
    recorded: bool = False

    @classmethod
    def of(cls, source: Mapping[str, Any] | Recipe) -> Sampling:
        """Those of all the arguments of a call, or of a recipe."""
        recorded = not isinstance(source, Mapping)
        named = source if isinstance(source, Mapping) else vars(source)
        return cls(
            **{option.name: named[option.name] for option in fields(cls) if option.name != "recorded"}, recorded=recorded
        )


def make_settings(
    model: Model,
    sampling: Sampling,
    height: int | None,
    width: int | None,
    shown: tuple[int, int] | None = None,
    task_args: TaskArgs | None = None,
    adapters: Mapping[str, float] | None = None,
) -> Settings:
    """ValueError says what cannot be. adapters: name -> weight, the model's if None."""
    task_args = {} if task_args is None else task_args
    if sampling.num_inference_steps is None:
        sampling = replace(sampling, num_inference_steps=steps_of(task_args))
    stack, frame = make_guidance(model, sampling), frame_of(task_args)
    patch = model.factor * model.network.config.patch
    height, width = check_size(height, width, model.config.sample_size, model.factor if frame else patch)
    seen = frame.window if frame else (height, width)
    if stack.acts_always and not getattr(model.network, "embeds", False):
        raise ValueError(f"The model {model.name!r} reads no guidance scale; choose other guidance than {stack.name!r}.")
    config = model.network.config
    needs = "guidance" in getattr(config, "scalars", ()) and getattr(config, "usual_guidance", None) is None
    if needs and not stack.acts_always and stack.own_rule is None:
        raise ValueError(
            f"The model {model.name!r} receives its guidance scale as an input; in the place of guidance={stack.name!r} leave "
            "the rule out, or name 'embedded' and what goes with it ('nag')."
        )
    steps = make_steps(model, sampling, seen[0] * seen[1] // patch**2)
    stack = stack.under(steps["solver"])
    settings = Settings(
        height=height,
        width=width,
        seen=seen,
        shown=shown,
        frame=frame,
        scale=_scale(model, sampling, stack),
        interval=_interval(model, sampling.guidance_interval),
        guidance=stack,
        batch_invariant=_invariant(model, sampling.batch_invariant),
        prompt_syntax=check_syntax(sampling.prompt_syntax),
        noise_kind=check_kind(sampling.noise_kind or "torch"),
        adapters=model.active_adapters(model.adapters if adapters is None else adapters),
        **{**steps, "unrecorded": (*steps["unrecorded"], *stack.unrecorded)},
    )
    guided = settings.scale != stack.neutral_scale
    stack.build(model.denoiser, settings.solver, settings.scale, None, settings.interval, guided)  # options are checked here
    return with_tasks(model, task_args, settings)


def _nominal(
    model: Model, levels: tuple[NoiseLevel, ...], schedule: object, options: Mapping[str, Any]
) -> tuple[NoiseLevel, ...]:
    """A hundred steps of the schedule of a solver that takes its own; its levels where the schedule has no such steps."""
    if not isinstance(schedule, str) or schedule == "table":
        return levels
    return tuple(get_grid(schedule, model.denoiser.path, 100, **options))


def _invariant(model: Model, choice: object) -> bool:
    """As asked for, or as the model was opened; else on a CPU, where it costs little, but for compiled models, whose kernels
    round by the batch."""
    choice = model.batch_invariant if choice is None else choice
    choice = False if choice is None and model.compiled else choice
    if choice is not None and not isinstance(choice, bool):
        raise ValueError(f"batch_invariant is {choice!r}; give True, False, or None for the device's usual.")
    return model.device.type == "cpu" if choice is None else choice


def make_guidance(model: Model, sampling: Sampling) -> GuidanceStack:
    defaults, options = model.config.defaults, sampling.guidance_options
    name = defaults.guidance if sampling.guidance is None else with_usual_rule(sampling.guidance, defaults.guidance)
    if sampling.guidance is None and options is None:
        options = defaults.guidance_options
    elif name != sampling.guidance and sampling.guidance is not None:
        options = {**defaults.guidance_options, **(check_option_values("guidance_options", options or {}))}
    return GuidanceStack.of(name, options, sampling.cache, sampling.cache_options, usual={"limit": model.limit})


def _scale(model: Model, sampling: Sampling, stack: GuidanceStack) -> float:
    unconditional = model.text_encoder is None and not model.classes
    if sampling.guidance_scale is None:
        usual = model.config.defaults.guidance_scale if stack.usual_scale is None else stack.usual_scale
        return stack.neutral_scale if unconditional else stack.effective_scale(usual)
    scale = check_float("guidance_scale", sampling.guidance_scale, 0, MAX_SCALE)
    if not sampling.recorded:  # a recipe's 0 is a picture without its prompt, as it was made then
        scale = stack.effective_scale(scale)
    if unconditional and scale != stack.neutral_scale:
        raise ValueError(f"The model {model.name!r} is unconditional and cannot be guided; leave guidance_scale out.")
    return scale


def _interval(model: Model, interval: object) -> tuple[float, float] | None:
    usual = model.config.defaults.guidance_interval
    return usual if interval is None else check_interval("guidance_interval", interval)


def _trained(defaults: Defaults) -> tuple[str, dict[str, Any]]:
    """The grid of LCM and TCD, whatever the model's is: the model's own where it is made for them, else the usual one, shifted
    as the model's."""
    if defaults.sampler in ("lcm", "tcd"):
        return defaults.schedule, dict(defaults.schedule_options)
    shift = defaults.schedule_options.get("shift")
    return "trained", {} if shift is None else {"shift": shift}


def make_steps(model: Model, sampling: Sampling, tokens: int) -> dict[str, Any]:
    """The fields of `Settings` that say which sampler takes which steps. tokens: how many the network sees at once."""
    defaults, sampler, schedule = model.config.defaults, sampling.sampler, sampling.schedule
    schedule_options = sampling.schedule_options
    steps = sampling.num_inference_steps
    if steps is None:
        table = schedule_options if schedule == "table" and isinstance(schedule_options, Mapping) else {}
        values, pure = table.get("values", ()), bool(table.get("pure_noise"))
        steps = len(values) + pure if values and isinstance(values, Sequence) else defaults.num_inference_steps
    steps = check_int("num_inference_steps", steps, 1, MAX_STEPS)
    unrecorded = [
        name for name, choice in (("sampler", sampler), ("schedule", schedule)) if choice and not isinstance(choice, str)
    ]
    sampler_options = sampling.sampler_options
    if sampler_options is None:
        sampler_options = defaults.sampler_options if sampler is None else {}
    sampler_options = check_option_values("sampler_options", sampler_options)
    sampler = defaults.sampler if sampler is None else sampler
    solver, brownian, own_steps = sampler, False, False
    if isinstance(sampler, str):  # "DPM++ 2M Karras" names both
        sampler, own_schedule = parse_sampler(sampler)
        schedule = own_schedule if schedule is None else schedule
        solver, info = get_solver(sampler, **sampler_options), solver_info(sampler)
        brownian = info.brownian
        own_steps = info.adaptive and not info.own_steps
        steps = 2 if own_steps else steps
        if schedule is None and schedule_options is None and info.grid == "trained" and sampling.sampler is not None:
            schedule, schedule_options = _trained(defaults)
    if schedule_options is None:
        schedule_options = defaults.schedule_options if schedule is None else {}
    schedule_options = check_option_values("schedule_options", schedule_options)
    schedule = defaults.schedule if schedule is None else schedule
    levels: Any = schedule
    if isinstance(schedule, str):
        schedule = grid_info(schedule).name
        if "tokens" in grid_info(schedule).options:  # that grid depends on the picture's size
            schedule_options = {"tokens": tokens, **schedule_options}
        if schedule == "automatic" and isinstance(sampler, str):  # and that one on the sampler
            schedule_options = {"sampler": sampler, **schedule_options}
        levels = get_grid(schedule, model.denoiser.path, steps, **schedule_options)
    return {
        "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
        "sampler_options": sampler_options,
        "schedule": schedule if isinstance(schedule, str) else "custom",
        "schedule_options": schedule_options,
        "solver": solver,
        "levels": tuple(levels),
        "grid": _nominal(model, tuple(levels), schedule, schedule_options) if own_steps else tuple(levels),
        "own_steps": own_steps,
        "steps": len(levels) - 1,
        "brownian": brownian,
        "unrecorded": tuple(unrecorded),
    }
