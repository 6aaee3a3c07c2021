"""The recipes of a batch: what was asked for, what took part, and what it was computed with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from gen.io.user_code import imported
from gen.io.version import __version__
from gen.models.attention_choice import recorded
from gen.nn.attention import choose
from gen.pipeline.recipe import BatchRecord as BatchRecord
from gen.pipeline.recipe import Machine, Recipe
from gen.pipeline.recipe import ModelRecord as ModelRecord
from gen.pipeline.task_table import record_of
from gen.pipeline.types import SamplingBatch, Settings
from samplers.sample import State

if TYPE_CHECKING:
    from gen.models.model import Model

OTHER_PROMPTS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")  # of further text encoders


def recipes_of(batch: SamplingBatch, state: State, edited: bool, stopped_at: int | None = None) -> list[Recipe]:
    """One for each picture, of the last state. edited: a callback changed latents. stopped_at: the steps of a run that ended
    early, where those of the state do not say so."""
    model, settings, items = batch.model, batch.settings, batch.items
    files = _adapter_files(model, settings)
    changed = ("callback edits",) if edited else ()
    changed = (*changed, "tiles for want of memory") if model.in_tiles else changed
    changed = (*changed, *_unrecorded_adapters(model, settings, files))
    fields: dict[str, Any] = {}
    for name, task in reversed(settings.tasks.items()):
        changed = (*changed, *task.traits.unrecorded)
        record = record_of(name, task, items)
        if "own_tasks" in record:
            record = {"own_tasks": {**fields.get("own_tasks", {}), **record["own_tasks"]}}
        fields |= record
    together = getattr(settings.solver, "together", False)
    beside = ("pictures beside it",) if together and len(items) > 1 else ()
    computed_with = machine(model, settings.seen)
    early = state.step < len(settings.levels) - 1
    height, width = settings.shown or (settings.height, settings.width)
    return [
        Recipe(
            prompt=item.prompt,
            negative_prompt=item.negative_prompt,
            prompt_syntax="full" if settings.prompt_syntax == "full" else "weights",
            **dict(zip(OTHER_PROMPTS, (*item.others, *item.negative_others), strict=True)),
            class_label=item.label if model.classes else None,
            seed=item.seed,
            height=height,
            width=width,
            made_at=(settings.height, settings.width) if settings.shown else None,
            num_inference_steps=settings.steps,
            sampler=settings.sampler,
            sampler_options=settings.sampler_options,
            schedule=settings.schedule,
            schedule_options=settings.schedule_options,
            guidance_scale=settings.scale,
            guidance_interval=settings.interval,
            guidance=settings.guidance.name,
            guidance_options=dict(settings.guidance.guidance_options),
            cache=settings.guidance.cache_name,
            cache_options=dict(settings.guidance.cache_options),
            noise_kind="philox" if settings.noise_kind == "philox" else None,
            adapters=settings.adapters,
            adapter_files=files or None,
            imports=imported() or None,
            stopped_at=state.step if early else stopped_at,
            unrecorded=(*settings.unrecorded, *["latents"] * (item.latent is not None), *changed, *beside),
            nfe=state.evaluations * settings.copies,
            model=ModelRecord(name=model.name[:300], weights=model.weights),
            batch=BatchRecord(size=len(items), row=row),
            batch_invariant=settings.batch_invariant,
            machine=computed_with,
            **fields,
            **{name: value for task in settings.tasks.values() for name, value in task.record_one(item).items()},
        )
        for row, item in enumerate(items)
    ]


def _adapter_files(model: Model, settings: Settings) -> dict[str, str]:
    """name -> sha256 of the adapters that took part and were read from files."""
    loaded = {name: model.loaded_adapters.loaded[name] for name in settings.adapters} if model.loaded_adapters else {}
    return {name: adapter.sha256 for name, adapter in loaded.items() if adapter.sha256}


def _unrecorded_adapters(model: Model, settings: Settings, files: dict[str, str]) -> list[str]:
    if model.loaded_adapters is None:
        return []
    unnamed = [f"adapter {name}"[:300] for name in settings.adapters if name not in files]
    return unnamed + ["fused adapters"] * bool(model.loaded_adapters.fused)


def machine(model: Model, network_size: tuple[int, int]) -> Machine:
    """What a model computes pictures of (height, width) with, as its recipes record it."""
    device = model.device
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return Machine(
        device=name,
        dtype=str(model.dtype).removeprefix("torch."),
        quantize=model.quantize,
        vae_tile=model.vae_tile,
        attention=_attention(model, network_size),
        compile=model.compiled[0].kind if model.compiled else None,
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        torch=torch.__version__,
        fewstep=__version__,
    )


def _attention(model: Model, network_size: tuple[int, int]) -> str:
    """The backend, and for "auto" the one it comes to on this device at this length: "auto (sdpa)".

    Nothing for a network of the user's own, which has no attention heads in its config.
    """
    network, config = model.network, model.network.config
    backend = recorded(network)
    if backend != "auto":
        return backend
    if not hasattr(config, "heads"):
        return ""
    latents = (network_size[0] // model.factor) * (network_size[1] // model.factor)
    length = latents // config.patch**2 + getattr(config, "extras", 0)
    probe = torch.empty(1, 1, 1, 1, device=model.device, dtype=model.dtype)
    probe = probe.expand(1, length, config.heads, config.dim // config.heads)
    return f"auto ({choose(probe, probe, probe)})"


def recorded_adapters(model: Model, recipe: Recipe) -> dict[str, float]:
    """The adapters of a recipe, if they are loaded and the same files; ValueError says which is not."""
    loaded = {} if model.loaded_adapters is None else model.loaded_adapters.loaded
    for name in recipe.adapters:
        digest = (recipe.adapter_files or {}).get(name)
        if name not in loaded:
            file = f" (sha256 {digest[:12]}…)" if digest else ""
            raise ValueError(
                f"The picture was made with the adapter {name!r}{file}, which is not loaded; load it under that name with "
                "load_adapter (--lora)."
            )
        if digest is not None and loaded[name].sha256 != digest:
            raise ValueError(f"The loaded adapter {name!r} is not the file that the picture was made with: its sha256 differs.")
    return dict(recipe.adapters)
