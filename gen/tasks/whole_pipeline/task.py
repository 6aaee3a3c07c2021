"""What is asked of a model that is a pipeline run as a whole: what it cannot do, its settings, and what its call is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gen.io.validators import MAX_SCALE, check_float, check_int, check_interval, check_option_values, check_texts
from gen.models.bridge.generic.call import PipelineCall, PipelinePictures, is_picture, read_pictures
from gen.models.bridge.generic.noise import OWN_GRID
from gen.models.bridge.generic.run import is_adaptive
from gen.models.model import Model
from gen.pipeline.guidance_stack import GuidanceStack
from gen.pipeline.recipe import Recipe
from gen.pipeline.settings import Sampling, make_steps
from gen.pipeline.types import Item, Settings, Task, TaskTraits
from gen.tasks.text_encoding.options import OPTIONS as ENCODING
from gen.tasks.whole_pipeline.options import PipelineRecord
from samplers.sample import Solver
from samplers.solvers.flow_map import FlowMap

USUAL_SIDE = 1024  # pixels of a picture whose pipeline does not say
OWN = "pipeline"  # the guidance that the pipeline's own call has
PICTURES = {"image": "image", "mask": "mask_image"}  # keywords of a call -> the pipeline's

# keywords of a call that need more than a whole pipeline shows -> why not
REFUSED = {
    "class_labels": "it has no classes of ours; give what it takes in pipeline_options",
    "composition": "its adapters are the pipeline's own, for all pictures alike; load them with its load_lora_weights",
    "regions": "its adapters are the pipeline's own, for all pictures alike; load them with its load_lora_weights",
    "control": "a ControlNet is part of a pipeline made for it, whose pictures are image= or pipeline_options",
    "controlnet": "a ControlNet is part of a pipeline made for it, whose pictures are image= or pipeline_options",
    "ip_adapter": "its own load_ip_adapter loads one; give ip_adapter_image in pipeline_options",
    "layout": "prompts by region need the network alone",
    "guide": "guidance by an energy needs the network's gradients",
    "transparent": "opacities are found while latents are decoded; give the finished picture to fewstep layers",
    "transparency": "opacities are found while latents are decoded; give the finished picture to fewstep layers",
    "prompt_syntax": "the pipeline reads its prompts itself",
    "noise_kind": "the pipeline draws its noise itself",
    "lora_dir": "the pipeline reads its prompts itself; load LoRAs with its load_lora_weights",
    "use_resolution_binning": "the pipeline chooses its sizes; give it in pipeline_options if that takes it",
}
TAKEN = {*PICTURES, "strength", "pipeline_options", *ENCODING.keywords}  # keywords of tasks that are the pipeline's too
INSIDE = "it changes the inside of the network, which only the pipeline calls"


@dataclass(frozen=True)
class WholePipeline(Task):
    """What the pipeline of a call is given beside prompts, sizes and numbers of steps.

    name: of the pipeline's class.
    options: by the pipeline's names, with pictures read.
    pictures: the sha256 of pictures by the pipeline's names.
    size: height and width as they are given.
    """

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    pictures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: tuple[int | None, int | None] = (None, None)

    @classmethod
    def from_call(cls, model: Model, args: Any, settings: Settings) -> tuple[Task | None, Settings]:
        raise ValueError(
            f"pipeline_options are for a pipeline that runs as a whole, and {model.name!r} was opened natively; leave them out."
        )

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> Mapping[str, Any]:
        name = recipe.pipeline.name if recipe.pipeline else "a pipeline"
        raise ValueError(f"The picture was made by {name} as a whole; open that pipeline, and replay it there.")

    @property
    def traits(self) -> TaskTraits:
        kept = {name for name, value in self.options.items() if name in self.pictures or _plain(name, value)}
        return TaskTraits(unrecorded=tuple(f"pipeline option {name}"[:300] for name in self.options if name not in kept))

    def record(self, items: Sequence[Item]) -> Mapping[str, Any]:
        plain = {name: value for name, value in self.options.items() if _plain(name, value)}
        return {
            "pipeline": PipelineRecord(
                name=self.name, options=plain, pictures=dict(self.pictures), height=self.size[0], width=self.size[1]
            )
        }


@dataclass(frozen=True)
class PipelineArgs:
    """A call of a whole pipeline, checked: what the pipeline is given, and its latents where the caller has some."""

    call: PipelineCall
    task: WholePipeline
    given: Mapping[str, Any]
    own_guidance: bool
    scaled: bool
    regridded: bool
    adaptive: bool


def refuse(model: Model, keywords: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
    """ValueError for what cannot be done with a pipeline as a whole."""
    name = model.network.call.name
    if what := ", ".join(keywords.get("_task_args") or ()):
        raise ValueError(f"{name} runs as a whole, so {what} cannot be made with it: only the pipeline knows its latents.")
    for keyword, value in {**keywords, **tasks}.items():
        if value is None or value is False:
            continue
        if keyword == "batch_invariant":
            raise ValueError(f"{name} runs as a whole, and its kernels are not ours to choose; leave batch_invariant out.")
        if keyword in REFUSED or (
            keyword in tasks and keyword not in (*PICTURES, "strength", "pipeline_options", *ENCODING.keywords)
        ):
            raise ValueError(f"{name} runs as a whole, so it takes no {keyword}: {REFUSED.get(keyword, INSIDE)}.")


def read_texts(prompt: Any, negative: Any) -> tuple[list[str], list[str]]:
    prompts = [""] if prompt is None else check_texts("prompt", prompt)
    negatives = [""] if negative is None else check_texts("negative_prompt", negative)
    if len(negatives) not in (1, len(prompts)):
        raise ValueError(f"negative_prompt has {len(negatives)} entries where {len(prompts)} are asked for; give one for all.")
    return prompts, negatives * len(prompts) if len(negatives) == 1 else negatives


def check_latents(call: PipelineCall, latents: Any, total: int) -> Tensor | None:
    if latents is None:
        return None
    call.check_takes("latents", latents, "leave them out")
    if not isinstance(latents, Tensor) or len(latents) != total or not latents.is_floating_point():
        raise ValueError(f"latents must be a tensor ({total}, ...) in the layout of {call.name}'s own latents.")
    return latents


def make_whole_settings(
    model: Model, sampling: Sampling, keywords: Mapping[str, Any], tasks: Mapping[str, Any]
) -> tuple[PipelineArgs, Settings]:
    call: PipelineCall = model.network.call
    stack = _guidance(call, sampling)
    own = stack.names == (OWN,)
    height, width = (keywords.get(name) for name in ("height", "width"))
    for name, side in (("height", height), ("width", width)):
        call.check_takes(name, side, "it takes the size of its pictures")
        if side is not None:
            check_int(name, side, 1, 16_384)
    task, given = _pipeline_args(call, tasks, own)
    task = replace(task, size=(height, width))
    regridded = sampling.schedule not in (None, OWN_GRID) or sampling.schedule_options not in (None, {})
    if sampling.schedule == OWN_GRID:  # as a name it is the pipeline's own also for samplers that have another by default
        usual = model.config.defaults
        sampling = replace(sampling, schedule=usual.schedule, schedule_options=dict(usual.schedule_options))
    named = sampling.schedule
    steps = make_steps(model, sampling, ((height or USUAL_SIDE) // 16) * ((width or USUAL_SIDE) // 16))
    regridded = regridded or (named is None and steps["schedule"] != model.config.defaults.schedule)
    if not regridded:
        steps |= {"schedule": OWN_GRID, "schedule_options": {}}
    stack = stack.under(steps["solver"]) if not own else stack
    if isinstance(steps["solver"], FlowMap):
        raise ValueError(f"The sampler 'flow_map' tells the network where a step ends, and {call.name} cannot; choose another.")
    if own and _reads_both(steps["solver"]):
        raise ValueError(
            f"The sampler {steps['sampler']!r} reads both branches of guidance, which {call.name} keeps to itself; "
            "say guidance='cfg', or choose another sampler."
        )
    rows, columns = (side or call.default(name) or USUAL_SIDE for name, side in (("height", height), ("width", width)))
    settings = Settings(
        height=rows,
        width=columns,
        seen=(rows, columns),
        shown=None,
        scale=_scale(call, sampling, stack, own),
        interval=_interval(sampling.guidance_interval, own),
        guidance=stack,
        adapters={},
        prompt_syntax="weights",
        tasks={"pipeline": task},
        **{**steps, "unrecorded": (*steps["unrecorded"], *stack.unrecorded, *_origin(model))},
    )
    adaptive = is_adaptive(settings.solver, own_grid=False) and settings.schedule != "custom"
    embedded = [name for name in given if "prompt_embeds" in name]
    if embedded and not own:
        raise ValueError(
            f"Guidance of ours reads prompts and negative prompts as rows, which {embedded[0]} takes the place of; give "
            "prompts, or leave guidance out."
        )
    ranged = [name for name in given if name.startswith("control_guidance_")]
    if ranged and is_adaptive(settings.solver):
        raise ValueError(
            f"{ranged[0]} is a share of the steps, and the sampler {steps['sampler']!r} does not know how many it will take; "
            "choose one of fixed steps, such as dpmpp_2m."
        )
    scaled = own and sampling.guidance_scale is not None
    return PipelineArgs(call, task, given, own, scaled, regridded, adaptive), settings


def _origin(model: Model) -> tuple[str, ...]:
    """A pipeline of the caller's own making is in no recipe."""
    return () if model.weights else ("pipeline object",)


def _reads_both(solver: Solver) -> bool:
    from samplers.solvers.comfy.null_branch import reads_both_branches

    return reads_both_branches(solver)


def _guidance(call: PipelineCall, sampling: Sampling) -> GuidanceStack:
    """The pipeline's own guidance under the name "pipeline"; or rules of ours, of which those that look into the network are
    refused."""
    named = sampling.guidance
    own = (named is None and sampling.guidance_options is None) or named == OWN
    stack = GuidanceStack.of(
        None if own else named, None if own else sampling.guidance_options, sampling.cache or None, sampling.cache_options
    )
    if own and sampling.guidance_options:
        raise ValueError(
            f"The guidance of {call.name} itself takes no guidance_options; name a rule of ours, or leave them out."
        )
    if not own and stack.own_rule is None:
        from samplers.guidance.registry import guidance_info

        for name in stack.names:
            if guidance_info(name).always or "perturbed_scale" in guidance_info(name).options:
                raise ValueError(f"{call.name} runs as a whole, so it takes no guidance {name!r}: {INSIDE}.")
    if stack.cache and stack.own_cache is None:
        from samplers.cache.registry import cache_info

        for name in stack.cache:
            if cache_info(name).saves != "evaluations":
                raise ValueError(f"{call.name} runs as a whole, so it takes no cache {name!r}: {INSIDE}. Choose reuse or easy.")
    return replace(stack, names=(OWN,), neutral_scale=-1.0) if own else stack


def _scale(call: PipelineCall, sampling: Sampling, stack: GuidanceStack, own: bool) -> float:
    if sampling.guidance_scale is None:
        usual = call.usual_scale if own or stack.usual_scale is None else stack.usual_scale
        return min(max(usual, 0.0), MAX_SCALE) if own else stack.effective_scale(usual)
    scale = check_float("guidance_scale", sampling.guidance_scale, 0, MAX_SCALE)
    if own and call.scale is None:
        if sampling.recorded:
            return scale
        raise ValueError(f"{call.name} takes no guidance_scale; leave it out.")
    return scale if own or sampling.recorded else stack.effective_scale(scale)


def _interval(interval: Any, own: bool) -> tuple[float, float] | None:
    if interval is not None and own:
        raise ValueError("The pipeline's own guidance has no interval; say guidance='cfg' with guidance_interval.")
    return None if interval is None else check_interval("guidance_interval", interval)


def _pipeline_args(call: PipelineCall, tasks: Mapping[str, Any], own: bool) -> tuple[WholePipeline, dict[str, Any]]:
    """The task, and what the pipeline is given."""
    options = tasks.get("pipeline_options") or {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"pipeline_options is {options!r}; give a dict of what {call.name} takes.")
    call.check_options(options, own)
    asked = dict(options)
    for keyword, name in PICTURES.items():
        if tasks.get(keyword) is not None:
            instead = "a pipeline of the same model that does is made by its from_pipe of diffusers"
            call.check_takes(name, tasks[keyword], instead)
            asked[name] = tasks[keyword]
    for keyword in ENCODING.keywords:
        if tasks.get(keyword) is not None:
            call.check_takes(keyword, tasks[keyword], "leave it out")
            asked[keyword] = tasks[keyword]
    if (strength := tasks.get("strength")) is not None:
        call.check_takes("strength", strength, "leave it out")
        asked["strength"] = check_float("strength", strength, 0, 1)
    pictures: dict[str, tuple[str, ...]] = {}
    for name, value in asked.items():
        if is_picture(name, value) or name in PICTURES.values():
            read = read_pictures(name, value, "L" if "mask" in name else "RGB")
            asked[name], pictures[name] = read, read.digests
    given = {name: value.value if isinstance(value, PipelinePictures) else value for name, value in asked.items()}
    return WholePipeline(call.name, asked, pictures), given


def _plain(name: str, value: Any) -> bool:
    """Can a recipe hold an option?"""
    if isinstance(value, PipelinePictures):
        return False
    try:
        check_option_values("pipeline_options", {name: value})
    except ValueError:
        return False
    return True
