"""The recipes of a batch: what was asked for, what took part, and what it was computed with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

from gen.nn.attention import choose
from gen.pipeline.recipe import Batch as BatchRecord
from gen.pipeline.recipe import Machine, Model, Recipe
from gen.pipeline.task import Batch
from samplers.sample import State

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.pipeline.settings import Settings


def recipes_of(batch: Batch, state: State, edited: bool) -> list[Recipe]:
    """One for each picture, of the last state. edited: a callback changed latents."""
    generator, settings, items = batch.generator, batch.settings, batch.items
    files = _adapter_files(generator, settings)
    changed = ("callback edits",) if edited else ()
    changed = (*changed, "tiles for want of memory") if generator.in_tiles else changed
    changed = (*changed, *_unrecorded_adapters(generator, settings, files))
    fields: dict[str, Any] = {}
    for kind in reversed(settings.kinds.values()):
        changed = (*changed, *kind.unrecorded)
        fields |= kind.recorded(items)
    together = getattr(settings.solver, "together", False)
    beside = ("pictures beside it",) if together and len(items) > 1 else ()
    computed_with = machine(generator, settings.seen)
    early = state.step < len(settings.levels) - 1
    height, width = settings.shown or (settings.height, settings.width)
    return [
        Recipe(
            prompt=item.prompt,
            negative_prompt=item.negative_prompt,
            class_label=item.label if generator.classes else None,
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
            guidance=settings.rules.name,
            guidance_options=dict(settings.rules.guidance_options),
            cache=settings.rules.cache_name,
            cache_options=dict(settings.rules.cache_options),
            adapters=settings.adapters,
            adapter_files=files or None,
            stopped_at=state.step if early else None,
            unrecorded=(*settings.unrecorded, *["latents"] * (item.latent is not None), *changed, *beside),
            nfe=state.evaluations * settings.copies,
            model=Model(name=generator.name[:300], weights=generator.weights),
            batch=BatchRecord(size=len(items), row=row),
            batch_invariant=settings.batch_invariant,
            machine=computed_with,
            **fields,
        )
        for row, item in enumerate(items)
    ]


def _adapter_files(generator: Generator, settings: Settings) -> dict[str, str]:
    """name -> sha256 of the adapters that took part and were read from files."""
    loaded = {name: generator._loaded.loaded[name] for name in settings.adapters} if generator._loaded else {}
    return {name: adapter.sha256 for name, adapter in loaded.items() if adapter.sha256}


def _unrecorded_adapters(generator: Generator, settings: Settings, files: dict[str, str]) -> list[str]:
    if generator._loaded is None:
        return []
    made = [f"adapter {name}"[:300] for name in settings.adapters if name not in files]
    return made + ["fused adapters"] * bool(generator._loaded.fused)


def machine(generator: Generator, seen: tuple[int, int]) -> Machine:
    """What a generator computes pictures of (height, width) with, as its recipes record it."""
    device = generator.device
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return Machine(
        device=name,
        dtype=str(generator.dtype).removeprefix("torch."),
        attention=_attention(generator, seen),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        torch=torch.__version__,
        fewstep=fewstep_version(),
    )


def _attention(generator: Generator, seen: tuple[int, int]) -> str:
    """The backend, and for "auto" the one it comes to on this device at this length: "auto (sdpa)"."""
    network, config = generator.network, generator.network.config
    asked = getattr(network, "attention_backend", "auto")
    if asked != "auto":
        return asked
    latents = (seen[0] // generator.factor) * (seen[1] // generator.factor)
    length = latents // config.patch**2 + getattr(config, "extras", 0)
    probe = torch.empty(1, 1, 1, 1, device=generator.device, dtype=generator.dtype)
    probe = probe.expand(1, length, config.heads, config.dim // config.heads)
    return f"auto ({choose(probe, probe, probe)})"


def fewstep_version() -> str:
    try:
        return version("fewstep")
    except PackageNotFoundError:
        return "not installed"
