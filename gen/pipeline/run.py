"""From a call's settings to pictures: batch by batch, each from noise to recipes."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.threads import is_lent, lock_of
from gen.models.decoding import free, is_out_of_memory, to_output_type
from gen.nn.backbones.fused import pack
from gen.nn.batch_invariance import batch_invariance
from gen.nn.conditions import pad_to_longest, with_picture_size
from gen.pipeline.callback import WithCallback, clean
from gen.pipeline.finite import Watch, check_begin, check_end, check_shown
from gen.pipeline.output import Output
from gen.pipeline.progress import CountEvaluations, EvaluationBar, StepsOnly
from gen.pipeline.recipe import Recipe
from gen.pipeline.recording import recipes_of
from gen.pipeline.scenes import Scene, group_of, scenes_of, token_counts
from gen.pipeline.types import Crop, Decode, Item, ReadPrompts, SamplingBatch, Settings, Task
from samplers.brownian import brownian_noise
from samplers.denoiser import Condition, Context, Denoiser
from samplers.multi_model.stages import CLOSE, LevelStage, LevelStages, StagedDenoiser, StagedSolver
from samplers.noise import normal, seeded_noise
from samplers.sample import Solver, State, trajectory

if TYPE_CHECKING:
    from gen.models.model import Model


@dataclass(frozen=True)
class FinishedBatch:
    """A finished batch: shown (B, ...), as `to_output_type` leaves it."""

    shown: Tensor
    recipes: list[Recipe]


MakeBatch = Callable[[Any, Sequence[Item], Settings, str, tuple | None, Any], FinishedBatch]


def make_all(
    model: Model,
    items: list[Item],
    settings: Settings,
    batch_size: int,
    output_type: str,
    callback: tuple | None,
    progress: bool,
    on_images: Callable[[Output], None] | None,
    make: MakeBatch | None = None,
) -> Output:
    """All pictures, batch by batch; those with and without guidance apart, so that neither changes the other, and those whose
    prompts name other LoRAs, join others, or (batch_invariant) would be padded for one another. Where `on_images` takes the
    pictures, none are kept. make: what makes a batch, `make_batch` if None."""
    make = make or make_batch
    model.interrupt = False
    if not is_lent(model.network):  # whoever lends it has done so for all runs
        pack(model.network)
    groups: dict[tuple, list[int]] = {}
    for i, item in enumerate(items):
        alike = (is_guided(item, settings), *group_of(item, settings), *token_counts(model, item, settings))
        groups.setdefault(alike, []).append(i)
    batch_size = settings.at_once or batch_size
    if settings.batch_invariant and getattr(model.network, "mixes_rows", False):
        batch_size = 1
    queue = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    queue.sort()
    done: dict[int, tuple[Tensor | None, Recipe]] = {}
    with progress_bar(settings, len(queue), progress) as bar:
        while queue and not model.interrupt:
            rows = queue.pop(0)
            try:
                finished = make(model, [items[i] for i in rows], settings, output_type, callback, bar)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                finished = None  # halved below, once the traceback has let go of the batch's memory
            if finished is None:
                queue[:0], settings = _halved(model, rows, settings)
                continue
            kept: Sequence[Tensor | None] = list(finished.shown)
            if on_images is not None:
                on_images(Output.of(finished.shown, finished.recipes, output_type, model.interrupt))
                kept = [None] * len(rows)
            done |= zip(rows, zip(kept, finished.recipes, strict=True), strict=True)
            finished = None  # before the next batch needs its memory
    order = sorted(done)
    images = None if on_images is not None else [shown for i in order if (shown := done[i][0]) is not None]
    return Output.of(images, [done[i][1] for i in order], output_type, model.interrupt)


def _halved(model: Model, rows: list[int], settings: Settings) -> tuple[list[list[int]], Settings]:
    """Half as many pictures at once, and half of whatever else needs memory."""
    smaller = settings.halve()
    if len(rows) == 1 and smaller is settings:
        raise ValueError(
            f"One picture of {settings.width} x {settings.height} does not fit in the memory of {model.device}; "
            "make it smaller, or use another device or dtype."
        )
    free(model.device)
    middle = (len(rows) + 1) // 2
    return [part for part in (rows[:middle], rows[middle:]) if part], smaller


@contextlib.contextmanager
def progress_bar(settings: Settings, batches: int, show: bool):
    """A bar of steps on a terminal; nothing elsewhere, and nothing if not wanted."""
    more = sum(task.traits.more_steps for task in settings.tasks.values())
    steps = (len(settings.levels) - 1 + more) * batches
    with open_bar(steps, show) as bar:
        yield bar if settings.frame is None else EvaluationBar(bar, steps)


def open_bar(steps: int, show: bool) -> Any:
    if not show:
        return contextlib.nullcontext(_NoBar())
    from tqdm import tqdm

    return tqdm(total=steps, disable=None, leave=False, unit="step")


class _NoBar:
    def update(self, steps: int) -> None: ...


def is_guided(item: Item, settings: Settings) -> bool:
    """Guidance has something to do: a scale, and a prompt, a negative prompt or a class."""
    others = any(text.strip() for text in (*item.others, *item.negative_others) if text)
    subject = item.prompt.strip() or item.negative_prompt.strip() or others or item.label >= 0
    subject = subject or any(task.traits.always_guided for task in settings.tasks.values())
    return settings.scale != settings.guidance.neutral_scale and bool(subject)


def make_batch(
    model: Model, items: Sequence[Item], settings: Settings, output_type: str, callback: tuple | None, bar: Any
) -> FinishedBatch:
    """Sample and decode pictures that are all guided or all not."""
    with batch_invariance(settings.batch_invariant):
        return _make_batch(model, items, settings, output_type, callback, bar)


def _make_batch(
    model: Model, items: Sequence[Item], settings: Settings, output_type: str, callback: tuple | None, bar: Any
) -> FinishedBatch:
    first = _sample(model, items, settings, callback, bar)
    final, shown_by, state = first, settings, first.state
    two = any(task.traits.more_steps for task in settings.tasks.values())
    stopped_at = state.step if two and first.stopped else None  # maybe at the very end of the first run
    second = None if first.stopped else _second_run(model, first.latents[: len(items)], settings)
    if second is not None:
        steps = len(settings.levels) - 1
        left = None if settings.stop_at is None else settings.stop_at - steps
        finisher = _second_model(model, settings)
        second = replace(second, stop_at=left)
        with lock_of(finisher.network):
            final = _sample(finisher, items, second, callback, StepsOnly(bar) if second.frame else bar, model)
        shown_by = second
        state = replace(first.state, evaluations=first.state.evaluations + final.state.evaluations)
        stopped_at = steps + final.state.step if final.state.step < len(second.levels) - 1 else None
    model.in_tiles = False
    latents = final.latents
    shown = latents[: len(items)] if output_type == "latent" else _show(model, latents, shown_by)
    check_shown(model, shown)
    asked = replace(first.batch, items=items, settings=settings)  # recipes have the prompts as they were given
    recipes = recipes_of(asked, state, first.edited or final.edited, stopped_at)
    return FinishedBatch(to_output_type(shown, output_type), recipes)


@dataclass(frozen=True)
class _Sampled:
    """A run to its end, or to where it was stopped. latents: what is shown of its last state."""

    batch: SamplingBatch
    state: State
    latents: Tensor
    edited: bool
    stopped: bool


def _sample(
    model: Model, items: Sequence[Item], settings: Settings, callback: tuple | None, bar: Any, called: Model | None = None
) -> _Sampled:
    """called: the model that was called, where that is another."""
    called = called or model
    watch = Watch()
    batch, denoiser, solver, condition = _staged(model, items, settings, bar, watch)
    solver = solver if callback is None else WithCallback(solver, called, *callback)
    check_begin(batch, batch.x)
    context, stopped = Context(adapters=batch.settings.adapters), False
    for state in trajectory(denoiser, solver, batch.x, settings.levels, condition, noise=batch.source, context=context):
        bar.update(1)
        stopped = called.interrupt or state.step == settings.stop_at
        if stopped:
            break
    latents = clean(state) if state.step < len(settings.levels) - 1 else state.x
    check_end(batch, watch, latents, settings.sampler)
    return _Sampled(batch, state, latents, isinstance(solver, WithCallback) and solver.edited, stopped)


def _second_run(model: Model, latents: Tensor, settings: Settings) -> Settings | None:
    """The settings of the run that a task goes on with."""
    runs = (task.second_run(model, latents, settings) for task in settings.tasks.values())
    return next((run for run in runs if run is not None), None)


def _second_model(model: Model, settings: Settings) -> Model:
    """The model that makes the second run."""
    models = (task.second_model(model) for task in settings.tasks.values())
    return next((other for other in models if other is not model), model)


def _staged(
    model: Model, items: Sequence[Item], settings: Settings, bar: Any, watch: Watch
) -> tuple[SamplingBatch, Denoiser, Solver, Condition]:
    """(batch, denoiser, solver, condition) of the first scene, or of all of them where prompts change on the way."""
    scenes, order = scenes_of(model, items, settings)
    guided = is_guided(items[0], settings)  # as asked for: a scene may be without words

    def make(number: int) -> tuple[SamplingBatch, LevelStage]:
        batch = _batch(model, scenes[number], guided)
        denoiser, solver = _wrapped(batch, scenes[number], bar, watch)
        return batch, LevelStage(denoiser, solver, batch.condition, batch.settings.adapters)

    bounds = [level.logsnr for level in settings.grid[1 : len(order)]]
    begun = order[bisect_right(bounds, settings.levels[0].logsnr + CLOSE)]
    batch, first = make(begun)
    if len(scenes) == 1:
        return batch, first.denoiser, first.solver, batch.condition
    stages = LevelStages(tuple(bounds), tuple(order), lambda number: make(number)[1], {begun: first})
    return batch, StagedDenoiser(stages, first.denoiser), StagedSolver(stages, first.solver), batch.condition


def _wrapped(batch: SamplingBatch, scene: Scene, bar: Any, watch: Watch) -> tuple[Denoiser, Solver]:
    """(denoiser, solver) of a scene with everything around the network."""
    denoiser, solver = _denoiser(batch, scene, bar, watch)
    for name, task in batch.settings.tasks.items():
        before = denoiser, solver
        denoiser, solver = task.wrap_guided(denoiser, solver, batch)
        if denoiser is not before[0] or solver is not before[1]:
            watch.outside.append(_stage(name, task))
    return denoiser, solver


def _batch(model: Model, scene: Scene, guided: bool) -> SamplingBatch:
    """The pictures' noise, and what they should and should not be."""
    items, settings = scene.items, scene.settings
    shape = (model.channels, settings.height // model.factor, settings.width // model.factor)
    if items[0].latent is None:
        noise = normal([item.seed for item in items], shape, "latents", device=model.device, kind=settings.noise_kind)
    else:
        noise = torch.stack([item.latent for item in items if item.latent is not None]).to(model.device)
    condition, negative = _conditions(model, items, settings)
    seeds, x = [item.seed for item in items], noise * settings.levels[0].sigma
    kind, draw = settings.noise_kind, brownian_noise if settings.brownian else seeded_noise
    source = draw(seeds, noise, kind=kind)
    batch = SamplingBatch(model, items, settings, noise, condition, negative, guided, x, source)
    for task in settings.tasks.values():
        batch = task.prepare(batch)
    return batch


def _conditions(model: Model, items: Sequence[Item], settings: Settings) -> tuple[Condition, Condition | None]:
    """What the pictures should be, and what they should not be where a prompt says so."""
    condition, negative = Condition(), None
    if model.text_encoder is not None:
        model.read_null(settings.adapters, settings.reading)
        condition = _read_prompts(model, [item.prompt for item in items], items, settings)
        negatives, others = [item.negative_prompt for item in items], [item.negative_others for item in items]
        if any(text.strip() for text in (*negatives, *(text for own in others for text in own if text))):
            refused = model.encode_prompt(negatives, settings.adapters, negative=True, reading=settings.reading, others=others)
            condition, negative = pad_to_longest([condition, refused])
    if model.classes:
        condition = replace(condition, label=torch.tensor([item.label for item in items], device=model.device))
        if negative is not None:
            negative = replace(negative, label=torch.full((len(items),), -1, device=model.device))
    condition = with_picture_size(condition, model, len(items), settings.seen)
    return condition, negative and with_picture_size(negative, model, len(items), settings.seen)


def _read_prompts(model: Model, prompts: list[str], items: Sequence[Item], settings: Settings) -> Condition:
    """Text features of B prompts as the tasks have them, the first task outermost."""

    def plain(texts: list[str]) -> Condition:
        others = [item.others for item in items]
        return model.encode_prompt(texts, settings.adapters, reading=settings.reading, others=others)

    def around(task: Task, inner: ReadPrompts) -> ReadPrompts:
        return lambda texts: task.read_prompts(model, texts, settings.adapters, inner)

    read: ReadPrompts = plain
    for task in reversed(settings.tasks.values()):
        read = around(task, read)
    return read(prompts)


def _stage(name: str, task: Task) -> str:
    """A task as messages call it."""
    label = task.traits.label
    return f"{name} ({label})" if label else name


def _denoiser(batch: SamplingBatch, scene: Scene, bar: Any, watch: Watch) -> tuple[Denoiser, Solver]:
    """The network under the caches and guidance that the batch has, and the solver, which CFG++ changes."""
    settings, stack = batch.settings, batch.settings.guidance
    for name, task in settings.tasks.items():
        if task.traits.guides_itself:
            guided: Denoiser = batch.model.denoiser
            for other in settings.tasks.values():
                guided = other.wrap_network(guided, batch) if other.traits.by_level else guided
            guided = task.wrap_network(guided, batch)
            return watch.stage(f"network or the guidance of {name}", guided), settings.solver
    network = batch.model.denoiser
    counted = network if settings.frame is None else CountEvaluations(network, bar)
    watched = watch.stage("network", counted)

    def wrap(denoiser: Denoiser) -> Denoiser:
        for name, task in settings.tasks.items():
            wrapped = task.wrap_network(denoiser, batch)
            denoiser = denoiser if wrapped is denoiser else watch.stage(_stage(name, task), wrapped)
        return denoiser

    def join(denoiser: Denoiser) -> Denoiser:
        return _joined(denoiser, batch, scene) if scene.joined else denoiser

    guided, solver = stack.build(
        watched, settings.solver, settings.scale, batch.negative, settings.interval, batch.guided, wrap, join
    )
    return (watch.stage(f"guidance {stack.name!r}", guided) if batch.guided else guided), solver


def _joined(denoiser: Denoiser, batch: SamplingBatch, scene: Scene) -> Denoiser:
    """A denoiser under prompts that AND joins."""
    from samplers.guidance.conjunction import Conjunction

    model, settings, run = batch.model, batch.settings, batch.condition
    conditions = tuple(
        replace(_read_prompts(model, list(prompts), batch.items, settings), label=run.label, extra={})
        for prompts in scene.joined
    )
    return Conjunction(denoiser, conditions, torch.tensor(scene.weights), batch.negative, mean=settings.guidance.acts_always)


def _show(model: Model, latents: Tensor, settings: Settings) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] as the tasks decode them, brought to the size asked for."""

    def plain(z: Tensor, crop: Crop | None) -> Tensor:
        return model.decode(z, None if crop is None else crop.size)

    def around(task: Task, inner: Decode) -> Decode:
        return lambda z, crop: task.decode(model, z, crop, inner)

    decode: Decode = plain
    for task in settings.tasks.values():
        decode = around(task, decode)
    return decode(latents, None if settings.shown is None else Crop(settings.shown, corner=settings.frame is not None))
