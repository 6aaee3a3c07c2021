"""What all pictures of a call share: the sampler, its levels and guidance, and the kinds of run (`gen.pipeline.task`),
checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from gen.io import validators as request
from gen.pipeline.guidance_stack import Rules
from gen.pipeline.task import frame_of, with_kinds
from samplers.path import NoiseLevel
from samplers.registry import get_grid, get_solver, grid_info, parse_sampler, solver_info
from samplers.sample import Solver

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.models.folder import Defaults
    from gen.pipeline.recipe import Recipe
    from gen.pipeline.task import Asked, Kind


# solvers whose own formulas, as published, go astray with few steps of an uneven schedule: docs/names.md, by eye
ASTRAY = {"comfy:lms", "comfy:ipndm_v", "comfy:deis", "comfy:uni_pc", "comfy:uni_pc_bh2", "ipndm", "pndm", "edict"}
ENOUGH = 30  # steps from which nothing is said


def remark_on_sampler(sampler: str, steps: int) -> None:
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
    recorded: bool = False

    @classmethod
    def of(cls, source: Mapping[str, Any] | Recipe) -> Sampling:
        """Those of all the arguments of a call, or of a recipe."""
        recorded = not isinstance(source, Mapping)
        named = vars(source) if recorded else source
        return cls(**{one.name: named[one.name] for one in fields(cls) if one.name != "recorded"}, recorded=recorded)


@dataclass(frozen=True)
class Settings:
    """What all pictures of a call share. levels: those that are run, of the schedule's `steps` + 1. seen: height and width that
    the network sees at once. brownian: noise comes from one Brownian path per picture. batch_invariant: no bit of a picture
    depends on its batch (`gen.nn.batch_invariance`). stop_at: end after this many steps, as
    an interrupted run did. shown: height and width that pictures made at height and width are cut to, about the middle; on a
    canvas from the top left. kinds: by name, from the network outwards."""

    height: int
    width: int
    seen: tuple[int, int]
    shown: tuple[int, int] | None
    steps: int
    scale: float
    interval: tuple[float, float] | None
    sampler: str
    sampler_options: dict[str, Any]
    schedule: str
    schedule_options: dict[str, Any]
    rules: Rules
    adapters: dict[str, float]
    solver: Solver
    levels: tuple[NoiseLevel, ...]
    brownian: bool = False
    batch_invariant: bool = False
    unrecorded: tuple[str, ...] = ()
    stop_at: int | None = None
    kinds: dict[str, Kind] = field(default_factory=dict)

    @property
    def at_once(self) -> int | None:
        """How many pictures may go through a solver together, None for any number: one where each takes steps of its own."""
        return None if getattr(self.solver, "together", True) else 1

    @property
    def copies(self) -> int:
        """Rows of x for one picture."""
        return max((kind.copies for kind in self.kinds.values()), default=1)

    def halved(self) -> Settings:
        """With less at once; itself where there is nothing to halve."""
        smaller = {name: kind.halved() for name, kind in self.kinds.items()}
        same = all(smaller[name] is kind for name, kind in self.kinds.items())
        return self if same else replace(self, kinds=smaller)


def make_settings(
    generator: Generator,
    sampling: Sampling,
    height: int | None,
    width: int | None,
    shown: tuple[int, int] | None = None,
    asked: Asked | None = None,
    adapters: Mapping[str, float] | None = None,
) -> Settings:
    """ValueError says what cannot be. adapters: name -> weight, the generator's if None."""
    asked = {} if asked is None else asked
    rules, frame = make_rules(generator, sampling), frame_of(asked)
    patch = generator.factor * generator.network.config.patch
    height, width = request.size(height, width, generator.config.sample_size, generator.factor if frame else patch)
    seen = frame.window if frame else (height, width)
    if rules.always and not getattr(generator.network, "embeds", False):
        raise ValueError(f"The model {generator.name!r} reads no guidance scale; choose other guidance than {rules.name!r}.")
    steps = _steps(generator, sampling, seen[0] * seen[1] // patch**2)
    rules = rules.under(steps["solver"])
    settings = Settings(
        height=height,
        width=width,
        seen=seen,
        shown=shown,
        scale=_scale(generator, sampling, rules),
        interval=_interval(generator, sampling.guidance_interval),
        rules=rules,
        batch_invariant=_invariant(generator, sampling.batch_invariant),
        adapters=generator._in_force(generator.adapters if adapters is None else adapters),
        **steps,
    )
    guided = settings.scale != rules.off
    rules.build(
        generator.denoiser, settings.solver, settings.scale, None, settings.interval, guided
    )  # options are checked here
    return with_kinds(generator, asked, settings)


def _invariant(generator: Generator, wanted: object) -> bool:
    """As asked for, or as the generator was made; else on a CPU, where it costs little."""
    wanted = generator.batch_invariant if wanted is None else wanted
    if wanted is not None and not isinstance(wanted, bool):
        raise ValueError(f"batch_invariant is {wanted!r}; give True, False, or None for the device's usual.")
    return generator.device.type == "cpu" if wanted is None else wanted


def make_rules(generator: Generator, sampling: Sampling) -> Rules:
    defaults, options = generator.config.defaults, sampling.guidance_options
    if sampling.guidance is None and options is None:
        options = defaults.guidance_options
    name = defaults.guidance if sampling.guidance is None else sampling.guidance
    return Rules.of(name, options, sampling.cache, sampling.cache_options, usual={"limit": generator.limit})


def _scale(generator: Generator, sampling: Sampling, rules: Rules) -> float:
    unconditional = generator.text_encoder is None and not generator.classes
    if sampling.guidance_scale is None:
        usual = generator.config.defaults.guidance_scale if rules.usual is None else rules.usual
        return rules.off if unconditional else rules.meant(usual)
    scale = request.real("guidance_scale", sampling.guidance_scale, 0, request.MAX_SCALE)
    if not sampling.recorded:  # a recipe's 0 is a picture without its prompt, as it was made then
        scale = rules.meant(scale)
    if unconditional and scale != rules.off:
        raise ValueError(f"The model {generator.name!r} is unconditional and cannot be guided; leave guidance_scale out.")
    return scale


def _interval(generator: Generator, interval: object) -> tuple[float, float] | None:
    usual = generator.config.defaults.guidance_interval
    return usual if interval is None else request.interval("guidance_interval", interval)


def _trained(defaults: Defaults) -> tuple[str, dict[str, Any]]:
    """The grid of LCM and TCD, whatever the model's is: the model's own where it is made for them, else the usual one, shifted
    as the model's."""
    if defaults.sampler in ("lcm", "tcd"):
        return defaults.schedule, dict(defaults.schedule_options)
    shift = defaults.schedule_options.get("shift")
    return "trained", {} if shift is None else {"shift": shift}


def _steps(generator: Generator, sampling: Sampling, tokens: int) -> dict[str, Any]:
    """The fields of `Settings` that say which sampler takes which steps. tokens: how many the network sees at once."""
    defaults, sampler, schedule = generator.config.defaults, sampling.sampler, sampling.schedule
    schedule_options = sampling.schedule_options
    steps = sampling.num_inference_steps
    if steps is None:
        own = schedule_options if schedule == "table" and isinstance(schedule_options, Mapping) else {}
        values, pure = own.get("values", ()), bool(own.get("pure_noise"))
        steps = len(values) + pure if values and isinstance(values, Sequence) else defaults.num_inference_steps
    steps = request.whole("num_inference_steps", steps, 1, request.MAX_STEPS)
    unrecorded = [name for name, own in (("sampler", sampler), ("schedule", schedule)) if own and not isinstance(own, str)]
    sampler_options = sampling.sampler_options
    if sampler_options is None:
        sampler_options = defaults.sampler_options if sampler is None else {}
    sampler_options = request.options("sampler_options", sampler_options)
    sampler = defaults.sampler if sampler is None else sampler
    solver, brownian = sampler, False
    if isinstance(sampler, str):  # "DPM++ 2M Karras" names both
        sampler, own_schedule = parse_sampler(sampler)
        schedule = own_schedule if schedule is None else schedule
        solver, info = get_solver(sampler, **sampler_options), solver_info(sampler)
        brownian = info.brownian
        steps = 2 if info.adaptive and not info.own_steps else steps  # an adaptive solver chooses its own
        if schedule is None and schedule_options is None and info.grid == "trained" and sampling.sampler is not None:
            schedule, schedule_options = _trained(defaults)
    if schedule_options is None:
        schedule_options = defaults.schedule_options if schedule is None else {}
    schedule_options = request.options("schedule_options", schedule_options)
    schedule = defaults.schedule if schedule is None else schedule
    levels = schedule
    if isinstance(schedule, str):
        schedule = grid_info(schedule).name
        if "tokens" in grid_info(schedule).options:  # that grid depends on the picture's size
            schedule_options = {"tokens": tokens, **schedule_options}
        if schedule == "automatic" and isinstance(sampler, str):  # and that one on the sampler
            schedule_options = {"sampler": sampler, **schedule_options}
        levels = get_grid(schedule, generator.denoiser.path, steps, **schedule_options)
    return {
        "sampler": sampler if isinstance(sampler, str) else type(sampler).__name__,
        "sampler_options": sampler_options,
        "schedule": schedule if isinstance(schedule, str) else "custom",
        "schedule_options": schedule_options,
        "solver": solver,
        "levels": tuple(levels),
        "steps": len(levels) - 1,
        "brownian": brownian,
        "unrecorded": tuple(unrecorded),
    }
