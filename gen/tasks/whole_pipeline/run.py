"""Calls of a model that is a pipeline of diffusers run as a whole (`gen.models.bridge.generic`).

The pipeline reads prompts and pictures and decodes; sampler, noise levels, caches, callbacks and, where it is asked for,
guidance are ours. Latents are (B, ...) in the pipeline's own layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen.io.validators import MAX_IMAGES, check_int
from gen.models.bridge.generic.call import arguments, is_picture
from gen.models.bridge.generic.run import FINE, PipelineRun
from gen.models.decoding import to_output_type
from gen.models.model import Model
from gen.models.prompt_syntax import warn_unread
from gen.pipeline import preview
from gen.pipeline.callback import WithCallback, check_inputs, clean
from gen.pipeline.finite import Watch, finite
from gen.pipeline.output import TYPES, Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.recording import recipes_of
from gen.pipeline.run import FinishedBatch, make_all, progress_bar
from gen.pipeline.settings import Sampling, warn_sampler
from gen.pipeline.subjects import draw_seeds, make_items
from gen.pipeline.types import Item, SamplingBatch, Settings
from gen.tasks.text_encoding.options import OPTIONS as ENCODING
from gen.tasks.whole_pipeline.task import OWN, PipelineArgs, check_latents, make_whole_settings, read_texts, refuse
from samplers.brownian import brownian_noise
from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import seeded_noise
from samplers.registry import get_grid
from samplers.sample import trajectory


def call_pipeline(model: Model, keywords: Mapping[str, Any], tasks: Mapping[str, Any]) -> Output:
    """`Generator.__call__` of such a model. keywords: of the call; tasks: those that belong to tasks. ValueError as there."""
    refuse(model, keywords, tasks)
    prompts, negatives = read_texts(keywords["prompt"], keywords["negative_prompt"])
    warn_unread([*prompts, *negatives], model.network.call.name)
    per_prompt = check_int("num_images_per_prompt", keywords["num_images_per_prompt"], 1, MAX_IMAGES)
    total = len(prompts) * per_prompt
    check_int("the number of pictures", total, 1, MAX_IMAGES)
    output_type = keywords["output_type"]
    if output_type not in TYPES:
        raise ValueError(f"output_type is {output_type!r}; choose one of {', '.join(TYPES)}.")
    batch_size = 1 if keywords["batch_size"] is None else check_int("batch_size", keywords["batch_size"], 1, 1024)
    callback = keywords["callback_on_step_end"]
    inputs = check_inputs(callback, keywords["callback_on_step_end_tensor_inputs"])
    asked, settings = make_whole_settings(model, Sampling.of(keywords), keywords, tasks)
    warn_sampler(settings.sampler, settings.steps)
    seeds = draw_seeds(total, keywords["seed"], keywords["seeds"], keywords["generator"])
    latents = check_latents(asked.call, keywords["latents"], total)
    items = make_items(prompts, negatives, [-1] * len(prompts), per_prompt, seeds, latents)

    def make(model: Model, items: Sequence[Item], settings: Settings, *rest: Any) -> FinishedBatch:
        return _make_batch(asked, model, items, settings, *rest)

    watcher = None if callback is None else (callback, inputs)
    return make_all(model, items, settings, batch_size, output_type, watcher, keywords["progress"], keywords["on_images"], make)


def replay_pipeline(model: Model, recipe: Recipe, output_type: str, progress: bool, tasks: Mapping[str, Any]) -> Output:
    """`Generator.replay` of such a model."""
    name = model.network.call.name
    if recipe.pipeline is None or recipe.pipeline.name != name:
        made = "a model of its own kind" if recipe.pipeline is None else recipe.pipeline.name
        raise ValueError(f"The picture was made by {made}, and this is {name}; open what made it.")
    recorded = recipe.pipeline
    again = {name: value for name, value in tasks.items() if value is not None}
    options = dict(again.pop("pipeline_options", {}))
    for option, value in recorded.options.items():
        if option in options:
            raise ValueError(f"The recipe says {option} already; leave it out.")
        if option != "strength" and option not in ENCODING.keywords:
            options[option] = value
    if any(is_picture(option, value) for option, value in recorded.options.items()):
        raise ValueError("The recipe names a file as a picture of the pipeline, which no recipe may; give it yourself.")
    again |= {name: value for name, value in recorded.options.items() if name == "strength" or name in ENCODING.keywords}
    keywords = {"height": recorded.height, "width": recorded.width}
    refuse(model, {}, again)
    asked, settings = make_whole_settings(model, Sampling.of(recipe), keywords, {**again, "pipeline_options": options})
    for picture, digests in {**dict.fromkeys(recorded.pictures), **asked.task.pictures}.items():
        if recorded.pictures.get(picture) != asked.task.pictures.get(picture):
            missing = digests is None or picture not in asked.task.pictures
            what = (
                "is not in its recipe; give it again" if missing else "is not the one that it was made with: its sha256 differs"
            )
            raise ValueError(f"The picture was made with a picture as {picture}, which {what}.")
    settings = replace(settings, stop_at=recipe.stopped_at)
    items = make_items([recipe.prompt], [recipe.negative_prompt], [-1], 1, [recipe.seed], None) * recipe.batch.size
    if recipe.batch.row >= recipe.batch.size:
        raise ValueError(f"The recipe says picture {recipe.batch.row} of a batch of {recipe.batch.size}, which has none.")
    model.interrupt = False
    with progress_bar(settings, 1, progress) as bar:
        done = _make_batch(asked, model, items, settings, output_type, None, bar)
    row = recipe.batch.row
    return Output.of(done.shown[row : row + 1], [done.recipes[row]], output_type)


def preview_pipeline(model: Model, latents: Tensor) -> list[Any]:
    """`Generator.preview` of such a model; ValueError for latents in a layout that only the pipeline knows."""
    from gen.models.bridge.vae import BridgedAutoencoder

    unpacked = model.network.unpacked(latents.float())
    if getattr(model, "_colours", None) is None:
        vae = BridgedAutoencoder(model.network.pipe.vae)
        model._colours = preview.fit(vae.to(unpacked.device), unpacked.device)  # type: ignore[attr-defined]
    return preview.pictures(preview.to_rgb(unpacked, model._colours.to(unpacked.device)))  # type: ignore[attr-defined]


# ---- a batch ----


def _make_batch(
    asked: PipelineArgs,
    model: Model,
    items: Sequence[Item],
    settings: Settings,
    output_type: str,
    callback: tuple | None,
    bar: Any,
) -> FinishedBatch:
    pipe, call, count = model.network.pipe, asked.call, len(items)
    ours = not asked.own_guidance and settings.scale != settings.guidance.neutral_scale
    rows = [*items, *items] if ours else list(items)
    prompts = [item.prompt for item in items] + ([item.negative_prompt for item in items] if ours else [])
    steps = FINE if asked.adaptive else settings.steps
    given = arguments(
        call,
        prompts=prompts,
        negatives=[] if not asked.own_guidance else [item.negative_prompt for item in items],
        seeds=[item.seed for item in rows],
        options=asked.given,
        num_inference_steps=steps,
        output_type="latent" if output_type == "latent" else "np",  # which all pipelines scale to [0, 1]
        height=asked.task.size[0],
        width=asked.task.size[1],
        **_scales(asked, pipe, settings),
        latents=_stacked(rows, model),
    )
    watch = Watch()
    height, width = asked.task.size
    model.network.size = None if height is None or width is None else (height, width)
    regrid = None
    if asked.regridded:
        fine = get_grid(settings.schedule, model.denoiser.path, FINE, **settings.schedule_options) if asked.adaptive else None
        levels = settings.levels if fine is None else tuple(fine)
        regrid = lambda own: levels  # noqa: E731
    own_solver, stack = settings.solver, settings.guidance
    if stack.names == (OWN,):
        stack = replace(stack, names=("cfg",), guidance_options={})
    with PipelineRun(pipe, given, own_solver, regrid=regrid, rows=count if ours else None) as run:
        label = torch.arange(len(rows))
        condition = Condition(label=label[:count]) if ours else Condition()
        negative = Condition(label=label[count:]) if ours else None
        if len(run.x) != count:
            raise ValueError(
                f"{call.name} makes {run.batch} pictures of {len(prompts)} prompts, which cannot be told apart here; give "
                "batch_size=1."
            )
        denoiser: Denoiser = watch.stage("network", run.denoiser)
        denoiser, solver = stack.build(denoiser, own_solver, settings.scale, negative, settings.interval, ours)
        solver = run.follow(solver)
        if callback is not None:
            solver = WithCallback(solver, model, *callback)
        seeds = [item.seed for item in items]
        noise = brownian_noise(seeds, run.x) if settings.brownian else seeded_noise(seeds, run.x)
        state = None
        for state in trajectory(denoiser, solver, run.x, run.levels, condition, noise=noise, context=Context()):
            bar.update(1)
            if model.interrupt or state.step == settings.stop_at:
                break
        assert state is not None
        latents = clean(state) if state.step < len(run.levels) - 1 else state.x
        _check_finite(latents, watch, settings.sampler)
        shown = _pictures(run.finish(latents), call.name, latents if output_type == "latent" else None, count)
        levels = run.levels
    height, width = shown.shape[-2:] if output_type != "latent" else (settings.height, settings.width)
    settings = replace(settings, height=height, width=width, levels=levels)
    batch = SamplingBatch(model, items, settings, shown, condition, negative, ours, latents, noise)
    edited = isinstance(solver, WithCallback) and solver.edited
    return FinishedBatch(to_output_type(shown, output_type), recipes_of(batch, state, edited))


def _scales(asked: PipelineArgs, pipe: Any, settings: Settings) -> dict[str, float]:
    """The pipeline's guidance: its own scale, its default, or off."""
    if not asked.own_guidance:
        return asked.call.unguided(pipe)
    name = asked.call.scale
    return {} if name is None or not asked.scaled or settings.scale == asked.call.usual_scale else {name: settings.scale}


def _stacked(rows: Sequence[Item], model: Model) -> Tensor | None:
    latents = [item.latent for item in rows if item.latent is not None]
    return torch.stack(latents).to(model.device) if latents else None


def _pictures(result: Any, name: str, latents: Tensor | None, count: int) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] of what a pipeline returned; its latents where those are asked for."""
    if latents is not None:
        return latents
    shown = getattr(result, "images", getattr(result, "image", None))
    if shown is None:
        shown = result[0] if isinstance(result, tuple) else result
    if isinstance(shown, list) and shown and isinstance(shown[0], Tensor):
        shown = torch.stack([one.squeeze(0) for one in shown])
    elif isinstance(shown, list):  # of PIL pictures
        shown = np.stack([np.asarray(one.convert("RGB"), dtype=np.float32) / 255 for one in shown])
    if isinstance(shown, np.ndarray):
        shown = torch.from_numpy(shown).movedim(-1, 1)
    if not isinstance(shown, Tensor) or shown.ndim != 4 or shown.shape[1] != 3 or len(shown) < count:
        what = tuple(shown.shape) if isinstance(shown, Tensor) else type(shown).__name__
        raise ValueError(f"{name} returned {what} where {count} pictures (3, H, W) are expected; call it directly.")
    shown = shown[:count].float()
    if not bool(finite(shown)):
        raise ValueError(f"The picture came to NaN or infinite values in the decoder of {name}; no picture was made.")
    return shown.clamp(0, 1)


def _check_finite(latents: Tensor, watch: Watch, sampler: str) -> None:
    if bool(finite(latents)):
        return
    culprits = watch.culprits()
    raise ValueError(
        f"The picture came to NaN or infinite values in the {culprits[0] if culprits else f'sampler {sampler!r}'}; no "
        "picture was made. Use float32 where numbers grow too large."
    )
