"""One batch of pictures from noise to recipe: the part of `Generator` that runs per batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.attention import choose
from gen.compose import Composition
from gen.conditions import alike
from gen.edit import Edit, cut_to
from gen.field import Rules
from gen.recipe import Batch, Machine, Model, Recipe, TweakRecord
from gen.request import Item
from samplers.brownian import brownian_noise
from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource, normal, seeded_noise
from samplers.path import NoiseLevel
from samplers.sample import Solver, State, trajectory

if TYPE_CHECKING:
    from gen.canvas import Canvas
    from gen.generator import Generator
    from gen.guide import Guide
    from gen.layout import Layout
    from gen.restore import Restoration
    from gen.tweaks import Tweaks
    from gen.views import Views

CALLBACK_TENSORS = ("latents", "denoised")


@dataclass(frozen=True)
class Settings:
    """What all pictures of a call share. levels: those that are run, of the schedule's `steps` + 1. brownian: noise comes from
    one Brownian path per picture. stop_at: end after this many steps, as an interrupted run did. shown: height and width that
    pictures made at height and width are cut to, about the middle; on a canvas from the top left."""

    height: int
    width: int
    steps: int
    scale: float
    interval: tuple[float, float] | None
    sampler: str
    sampler_options: dict[str, Any]
    schedule: str
    schedule_options: dict[str, Any]
    rules: Rules
    edit: Edit | None
    adapters: dict[str, float]
    solver: Solver
    levels: tuple[NoiseLevel, ...]
    brownian: bool = False
    unrecorded: tuple[str, ...] = ()
    stop_at: int | None = None
    guide: Guide | None = None
    restore: Restoration | None = None
    canvas: Canvas | None = None
    shown: tuple[int, int] | None = None
    layout: Layout | None = None
    views: Views | None = None
    composition: Composition = field(default_factory=Composition)
    tweaks: Tweaks | None = None


@dataclass(frozen=True)
class Made:
    """A finished batch: shown (B, ...) as `output_type` wants it, still a tensor."""

    shown: Tensor
    recipes: list[Recipe]


@dataclass
class WithCallback:
    """A solver that hands every new state to the caller, who may change it or stop the run."""

    solver: Solver
    generator: Generator
    callback: Callable[..., Mapping[str, Tensor] | None]
    inputs: Sequence[str]
    edited: bool = field(default=False, init=False)

    def init(self, x: Tensor) -> State:
        return self.solver.init(x)

    def step(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> State:
        after = self.solver.step(denoiser, state, s, t, condition, context, noise)
        tensors = {"latents": after.x, "denoised": clean(after)}
        given = {name: tensors[name] for name in self.inputs}
        version = after.x._version
        returned = self.callback(self.generator, context.step, t.t, dict(given))
        if returned is None:
            returned = {}
        if not isinstance(returned, Mapping) or not set(returned) <= set(CALLBACK_TENSORS):
            what = sorted(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
            raise ValueError(f"callback_on_step_end returned {what}; return None or a dict with the latents.")
        latents = returned.get("latents", after.x)
        if not isinstance(latents, Tensor) or latents.shape != after.x.shape:
            shape = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"callback_on_step_end returned latents of {shape}; they must stay {tuple(after.x.shape)}.")
        if latents is after.x and after.x._version == version:
            return after
        self.edited = True
        return replace(after, x=latents.to(after.x))


def clean(state: State) -> Tensor:
    """The clean picture that a state points to, or its own x before any prediction."""
    return state.x if state.prediction is None else state.prediction.x0


def check_inputs(callback: object, inputs: object) -> tuple[str, ...]:
    """The tensor names a callback asks for."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end is {callback!r}, which cannot be called; give a function.")
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or not set(inputs) <= set(CALLBACK_TENSORS):
        raise ValueError(f"callback_on_step_end_tensor_inputs is {inputs!r}; name some of {', '.join(CALLBACK_TENSORS)}.")
    return tuple(inputs)


def progress_bar(steps: int, show: bool):
    """A bar on a terminal; nothing elsewhere, and nothing if not wanted."""
    if not show:
        return contextlib.nullcontext(_NoBar())
    from tqdm import tqdm

    return tqdm(total=steps, disable=None, leave=False, unit="step")


def counting(bar: Any, settings: Settings, batches: int) -> Any:
    """A bar of steps, or for a canvas, whose steps take long, of the evaluations in them."""
    if settings.canvas is None:
        return bar
    from gen.canvas import EvaluationBar

    return EvaluationBar(bar, (len(settings.levels) - 1) * batches)


class _NoBar:
    def update(self, steps: int) -> None: ...


def is_guided(item: Item, settings: Settings) -> bool:
    """Guidance has something to do: a scale, and a prompt, a negative prompt or a class. Regions and views have prompts of
    their own."""
    told = settings.layout or settings.views or item.prompt.strip() or item.negative_prompt.strip() or item.label >= 0
    return settings.scale != settings.rules.off and bool(told)


def make_batch(
    generator: Generator, items: Sequence[Item], settings: Settings, output_type: str, callback: tuple | None, bar
) -> Made:
    """Sample and decode pictures that are all guided or all not."""
    seeds, prompts = [item.seed for item in items], [item.prompt for item in items]
    shape = (generator.channels, settings.height // generator.factor, settings.width // generator.factor)
    if items[0].latent is None:
        noise = normal(seeds, shape, "latents", device=generator.device)
    else:
        noise = torch.stack([item.latent for item in items]).to(generator.device)
    condition, negative = _conditions(generator, items, settings)
    leaf, canvas, several = generator.denoiser, settings.canvas, []
    if canvas is not None:
        from gen.canvas import Counted

        leaf = Counted(leaf, bar)
        several, negative = canvas.conditions(generator, condition, negative, settings.adapters)
    field, solver = _field(generator, leaf, items, settings, condition, negative, noise)
    if canvas is not None:
        field, solver = canvas.build(generator, field, solver, several, seeds)
    if settings.restore is not None:
        field = settings.restore.build(generator, field)
    if settings.guide is not None:
        draws = seeded_noise(seeds, noise)
        field, solver = settings.guide.build(generator, field, solver, settings.levels, draws, prompts)
    if settings.tweaks is not None:
        field = settings.tweaks.outside(generator, field, seeded_noise(seeds, noise), prompts)
    solver = solver if callback is None else WithCallback(solver, generator, *callback)
    x, edit = noise * settings.levels[0].sigma, settings.edit
    if edit is not None:
        x = settings.levels[0].mix(edit.latents, noise)
        if edit.mask is not None:
            from samplers.editing import Inpaint

            field = Inpaint(field, edit.latents, edit.latent_mask, noise)
    fresh = brownian_noise(seeds, noise) if settings.brownian else seeded_noise(seeds, noise)
    if settings.views is not None:
        x, fresh = settings.views.start(noise) * settings.levels[0].sigma, settings.views.noise(fresh)
    states = trajectory(field, solver, x, settings.levels, condition, noise=fresh, context=Context(adapters=settings.adapters))
    for state in states:
        bar.update(1)
        if generator.interrupt or state.step == settings.stop_at:
            break
    early = state.step < len(settings.levels) - 1
    latents = clean(state) if early else state.x
    known = [source for source in (edit, settings.restore) if source is not None]  # put back, then cut
    if output_type == "latent":
        shown = latents[: len(items)]
    elif canvas is not None:
        shown = canvas.show(generator, latents, edit, settings.shown)
    elif settings.views is not None:
        shown = settings.views.show(generator, latents, settings.shown)
    elif not known:
        shown = generator.decode(latents, settings.shown)
    else:
        shown = generator.decode(latents)
        for source in known:
            shown = source.keep_known(shown)
        shown = shown if settings.shown is None else cut_to(shown, settings.shown)
    changed = ("callback edits",) if isinstance(solver, WithCallback) and solver.edited else ()
    recipes = []
    changed = (*changed, *_unrecorded_adapters(generator, settings))
    changed = (*changed, *(settings.tweaks.unrecorded if settings.tweaks is not None else ()))
    tweaks = {} if settings.tweaks is None else settings.tweaks.records(items)
    if settings.guide is not None and not settings.guide.record.energy:
        changed = (*changed, "energy of the guide")
    changed = (*changed, *(canvas.unrecorded if canvas else ()))
    computed_with = machine(generator, canvas.windows.size if canvas else shape[1:])
    for row, item in enumerate(items):
        beside = ("pictures beside it",) if settings.rules.together and len(items) > 1 else ()
        unrecorded = (*settings.unrecorded, *["latents"] * (item.latent is not None), *changed, *beside)
        batch = Batch(size=len(items), row=row)
        recipes.append(_recipe(generator, item, settings, batch, state, early, unrecorded, computed_with, tweaks))
    return Made(shown, recipes)


def _conditions(generator: Generator, items: Sequence[Item], settings: Settings) -> tuple[Condition, Condition | None]:
    """What the pictures should be, and what they should not be where a prompt says so."""
    condition, negative = Condition(), None
    if generator.text_encoder is not None:
        generator.read_null(settings.adapters)
        own = settings.canvas.record.prompts[:1] if settings.canvas else ()  # of several, see `Canvas.conditions`
        prompts = [own[0] if own else item.prompt for item in items]
        condition = generator.encode_prompt(prompts, settings.adapters)
        if settings.tweaks is not None:
            condition = settings.tweaks.read(generator, prompts, condition, settings.adapters)
        negatives = [item.negative_prompt for item in items]
        if any(text.strip() for text in negatives):
            refused = generator.encode_prompt(negatives, settings.adapters, negative=True)
            condition, negative = alike(condition, refused)
    if generator.classes:
        condition = replace(condition, label=torch.tensor([item.label for item in items], device=generator.device))
        if negative is not None:
            negative = replace(negative, label=torch.full((len(items),), -1, device=generator.device))
    condition = told_its_size(condition, generator, len(items), settings)
    return condition, negative and told_its_size(negative, generator, len(items), settings)


def told_its_size(condition: Condition, generator: Generator, count: int, settings: Settings) -> Condition:
    """With height, width and height / width in pixels, for a network that asks for them."""
    if not getattr(generator.network.config, "size_conditions", False):
        return condition
    sides = settings.canvas.record.window if settings.canvas else (settings.height, settings.width)
    size = torch.tensor([sides] * count, dtype=torch.float32, device=generator.device)
    return replace(condition, extra={**condition.extra, "size": size, "aspect": size[:, :1] / size[:, 1:]})


def _field(
    generator: Generator,
    leaf: Denoiser,
    items: Sequence[Item],
    settings: Settings,
    condition: Condition,
    negative: Condition | None,
    noise: Tensor,
) -> tuple[Denoiser, Solver]:
    """The network under the caches and guidance that the batch has, and the solver, which CFG++ changes."""
    if settings.layout is not None:
        return settings.layout.build(generator, generator.denoiser, items, settings, noise, negative), settings.solver
    if settings.views is not None:
        views = settings.views.build(generator, condition, settings, negative, is_guided(items[0], settings))
        return views, settings.solver
    guided = is_guided(items[0], settings)
    inside: Callable[[Denoiser], Denoiser] = settings.composition
    if settings.tweaks is not None:
        seeds, prompts = [item.seed for item in items], [item.prompt for item in items]
        tweak = settings.tweaks.inside(generator, seeds, prompts, condition)

        def inside(denoiser: Denoiser) -> Denoiser:
            return tweak(settings.composition(denoiser))

    return settings.rules.build(leaf, settings.solver, settings.scale, negative, settings.interval, guided, inside)


def _recipe(
    generator: Generator,
    item: Item,
    settings: Settings,
    batch: Batch,
    state: State,
    early: bool,
    unrecorded: tuple[str, ...],
    computed_with: Machine,
    tweaks: dict[str, TweakRecord],
) -> Recipe:
    return Recipe(
        prompt=item.prompt,
        negative_prompt=item.negative_prompt,
        class_label=item.label if generator.classes else None,
        seed=item.seed,
        height=settings.shown[0] if settings.shown else settings.height,
        width=settings.shown[1] if settings.shown else settings.width,
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
        start=None if settings.edit is None else settings.edit.start,
        guide=None if settings.guide is None else settings.guide.record,
        restore=None if settings.restore is None else settings.restore.record,
        layout=None if settings.layout is None else settings.layout.record,
        tweaks=tweaks,
        canvas=None if settings.canvas is None else settings.canvas.record,
        views=None if settings.views is None else settings.views.record,
        adapters=settings.adapters,
        composition="" if settings.composition.name == "merge" else settings.composition.name,
        composition_options=dict(settings.composition.options),
        regions=dict(settings.composition.digests),
        adapter_files=_adapter_files(generator, settings) or None,
        stopped_at=state.step if early else None,
        unrecorded=unrecorded,
        nfe=state.evaluations * (1 if settings.views is None else settings.views.count),
        model=Model(name=generator.name[:300], weights=generator.weights),
        batch=batch,
        machine=computed_with,
    )


def _adapter_files(generator: Generator, settings: Settings) -> dict[str, str]:
    """name -> sha256 of the adapters that took part and were read from files."""
    loaded = {name: generator._loaded.loaded[name] for name in settings.adapters}
    return {name: adapter.sha256 for name, adapter in loaded.items() if adapter.sha256}


def _unrecorded_adapters(generator: Generator, settings: Settings) -> list[str]:
    if generator._loaded is None:
        return []
    files = _adapter_files(generator, settings)
    made = [f"adapter {name}"[:300] for name in settings.adapters if name not in files]
    return made + ["fused adapters"] * bool(generator._loaded.fused)


def machine(generator: Generator, latent: tuple[int, int]) -> Machine:
    """What a generator computes latents of (h, w) with, as its recipes record it."""
    device = generator.device
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
    return Machine(
        device=name,
        dtype=str(generator.dtype).removeprefix("torch."),
        attention=_attention(generator, latent),
        threads=torch.get_num_threads() if device.type == "cpu" else 0,
        torch=torch.__version__,
        fewstep=fewstep_version(),
    )


def _attention(generator: Generator, latent: tuple[int, int]) -> str:
    """The backend, and for "auto" the one it comes to on this device at this length: "auto (sdpa)"."""
    network, config = generator.network, generator.network.config
    asked = getattr(network, "attention_backend", "auto")
    if asked != "auto":
        return asked
    length = latent[0] * latent[1] // config.patch**2 + getattr(config, "extras", 0)
    probe = torch.empty(1, 1, 1, 1, device=generator.device, dtype=generator.dtype)
    probe = probe.expand(1, length, config.heads, config.dim // config.heads)
    return f"auto ({choose(probe, probe, probe)})"


def fewstep_version() -> str:
    try:
        return version("fewstep")
    except PackageNotFoundError:
        return "not installed"
