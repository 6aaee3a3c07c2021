"""From a call's settings to pictures: batch by batch, each from noise to recipes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.images import cut_to
from gen.models.decoding import free, gone_from, is_out_of_memory
from gen.nn.backbones.fused import pack
from gen.nn.batch_invariance import each_alone
from gen.nn.conditions import alike, told_its_size
from gen.pipeline.callback import WithCallback, clean
from gen.pipeline.finite import Watch, check_begin, check_end, check_shown
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.recording import recipes_of
from gen.pipeline.settings import Settings
from gen.pipeline.task import Batch
from gen.pipeline.types import Item
from samplers.brownian import brownian_noise
from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import normal
from samplers.sample import Solver, trajectory

if TYPE_CHECKING:
    from gen.generator import Generator


@dataclass(frozen=True)
class Made:
    """A finished batch: shown (B, ...), as `gone_from` leaves it."""

    shown: Tensor
    recipes: list[Recipe]


def make_all(
    generator: Generator,
    items: list[Item],
    settings: Settings,
    batch_size: int,
    output_type: str,
    callback: tuple | None,
    progress: bool,
    on_images: Callable[[Output], None] | None,
) -> Output:
    """All pictures, batch by batch; those with and without guidance apart, so that neither changes the other. Where `on_images`
    takes the pictures, none are kept."""
    generator.interrupt = False
    pack(generator.network)
    guided = [i for i, item in enumerate(items) if is_guided(item, settings)]
    plain = sorted(set(range(len(items))) - set(guided))
    batch_size = settings.at_once or batch_size
    queue = [group[i : i + batch_size] for group in (guided, plain) for i in range(0, len(group), batch_size)]
    queue.sort()
    done: dict[int, tuple[Tensor | None, Recipe]] = {}
    with progress_bar(settings, len(queue), progress) as bar:
        while queue and not generator.interrupt:
            rows = queue.pop(0)
            try:
                made = make_batch(generator, [items[i] for i in rows], settings, output_type, callback, bar)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                made = None  # halved below, once the traceback has let go of the batch's memory
            if made is None:
                queue[:0], settings = _halved(generator, rows, settings)
                continue
            kept: Sequence[Tensor | None] = list(made.shown)
            if on_images is not None:
                on_images(Output.of(made.shown, made.recipes, output_type, generator.interrupt))
                kept = [None] * len(rows)
            done |= zip(rows, zip(kept, made.recipes, strict=True), strict=True)
            made = None  # before the next batch needs its memory
    order = sorted(done)
    images = None if on_images is not None else [done[i][0] for i in order]
    return Output.of(images, [done[i][1] for i in order], output_type, generator.interrupt)


def _halved(generator: Generator, rows: list[int], settings: Settings) -> tuple[list[list[int]], Settings]:
    """Half as many pictures at once, and half of whatever else needs memory."""
    smaller = settings.halved()
    if len(rows) == 1 and smaller is settings:
        raise ValueError(
            f"One picture of {settings.width} x {settings.height} does not fit in the memory of {generator.device}; "
            "make it smaller, or use another device or dtype."
        )
    free(generator.device)
    middle = (len(rows) + 1) // 2
    return [part for part in (rows[:middle], rows[middle:]) if part], smaller


@contextlib.contextmanager
def progress_bar(settings: Settings, batches: int, show: bool):
    """A bar of steps on a terminal; nothing elsewhere, and nothing if not wanted."""
    steps = (len(settings.levels) - 1) * batches
    with open_bar(steps, show) as bar:
        for kind in settings.kinds.values():
            bar = kind.bar(bar, steps)
        yield bar


def open_bar(steps: int, show: bool) -> Any:
    if not show:
        return contextlib.nullcontext(_NoBar())
    from tqdm import tqdm

    return tqdm(total=steps, disable=None, leave=False, unit="step")


class _NoBar:
    def update(self, steps: int) -> None: ...


def is_guided(item: Item, settings: Settings) -> bool:
    """Guidance has something to do: a scale, and a prompt, a negative prompt or a class."""
    told = item.prompt.strip() or item.negative_prompt.strip() or item.label >= 0
    told = told or any(kind.own_prompts for kind in settings.kinds.values())
    return settings.scale != settings.rules.off and bool(told)


def make_batch(
    generator: Generator, items: Sequence[Item], settings: Settings, output_type: str, callback: tuple | None, bar: Any
) -> Made:
    """Sample and decode pictures that are all guided or all not."""
    with each_alone(settings.batch_invariant):
        return _make_batch(generator, items, settings, output_type, callback, bar)


def _make_batch(
    generator: Generator, items: Sequence[Item], settings: Settings, output_type: str, callback: tuple | None, bar: Any
) -> Made:
    batch = _batch(generator, items, settings)
    noise, kinds = batch.noise, settings.kinds.values()
    watch = Watch()
    field, solver = _field(batch, bar, watch)
    for name, kind in settings.kinds.items():
        before = field, solver
        field, solver = kind.around(field, solver, batch)
        if field is not before[0] or solver is not before[1]:
            watch.outside.append(f"{name} ({kind.named})" if kind.named else name)
    solver = solver if callback is None else WithCallback(solver, generator, *callback)
    x, source = noise * settings.levels[0].sigma, batch.fresh()
    if settings.brownian:
        source = brownian_noise(batch.seeds, noise)
    for kind in kinds:
        x, source = kind.begin(x, noise, settings.levels[0]), kind.noise(source)
    check_begin(batch, x)
    context = Context(adapters=settings.adapters)
    for state in trajectory(field, solver, x, settings.levels, batch.condition, noise=source, context=context):
        bar.update(1)
        if generator.interrupt or state.step == settings.stop_at:
            break
    latents = clean(state) if state.step < len(settings.levels) - 1 else state.x
    check_end(batch, watch, latents, settings.sampler)
    generator.in_tiles = False
    shown = latents[: len(items)] if output_type == "latent" else _show(generator, latents, settings)
    check_shown(generator, shown)
    return Made(gone_from(shown, output_type), recipes_of(batch, state, isinstance(solver, WithCallback) and solver.edited))


def _batch(generator: Generator, items: Sequence[Item], settings: Settings) -> Batch:
    """The pictures' noise, and what they should and should not be."""
    shape = (generator.channels, settings.height // generator.factor, settings.width // generator.factor)
    if items[0].latent is None:
        noise = normal([item.seed for item in items], shape, "latents", device=generator.device)
    else:
        noise = torch.stack([item.latent for item in items if item.latent is not None]).to(generator.device)
    condition, negative = _conditions(generator, items, settings)
    batch = Batch(generator, items, settings, noise, condition, negative, is_guided(items[0], settings))
    for kind in settings.kinds.values():
        batch = replace(batch, negative=kind.negative(batch))
    return batch


def _conditions(generator: Generator, items: Sequence[Item], settings: Settings) -> tuple[Condition, Condition | None]:
    """What the pictures should be, and what they should not be where a prompt says so."""
    condition, negative = Condition(), None
    if generator.text_encoder is not None:
        generator.read_null(settings.adapters)
        prompts = [item.prompt for item in items]
        for kind in settings.kinds.values():
            prompts = kind.texts(prompts)
        condition = generator.encode_prompt(prompts, settings.adapters)
        for kind in settings.kinds.values():
            condition = kind.read(generator, prompts, condition, settings.adapters)
        negatives = [item.negative_prompt for item in items]
        if any(text.strip() for text in negatives):
            refused = generator.encode_prompt(negatives, settings.adapters, negative=True)
            condition, negative = alike(condition, refused)
    if generator.classes:
        condition = replace(condition, label=torch.tensor([item.label for item in items], device=generator.device))
        if negative is not None:
            negative = replace(negative, label=torch.full((len(items),), -1, device=generator.device))
    condition = told_its_size(condition, generator, len(items), settings.seen)
    return condition, negative and told_its_size(negative, generator, len(items), settings.seen)


def _field(batch: Batch, bar: Any, watch: Watch) -> tuple[Denoiser, Solver]:
    """The network under the caches and guidance that the batch has, and the solver, which CFG++ changes."""
    settings, leaf = batch.settings, batch.generator.denoiser
    for name, kind in settings.kinds.items():
        if (own := kind.field(batch)) is not None:
            return watch.stage(f"network or the guidance of {name}", own), settings.solver
        leaf = kind.network(leaf, bar)
    leaf = watch.stage("network", leaf)

    def inside(denoiser: Denoiser) -> Denoiser:
        for name, kind in settings.kinds.items():
            within = kind.inside(denoiser, batch)
            denoiser = denoiser if within is denoiser else watch.stage(f"{name} ({kind.named})" if kind.named else name, within)
        return denoiser

    solver, negative = settings.solver, batch.negative
    field, solver = settings.rules.build(leaf, solver, settings.scale, negative, settings.interval, batch.guided, inside)
    return (watch.stage(f"guidance {settings.rules.name!r}", field) if batch.guided else field), solver


def _show(generator: Generator, latents: Tensor, settings: Settings) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1]: what is known of them put back, then cut."""
    kinds = settings.kinds.values()
    known = [kind for kind in reversed(kinds) if kind.keeps]
    for kind in kinds:
        if (own := kind.show(generator, latents, settings.shown, known)) is not None:
            return own
    if not known:
        return generator.decode(latents, settings.shown)
    shown = generator.decode(latents)
    for kind in known:
        shown = kind.keep_known(shown)
    return shown if settings.shown is None else cut_to(shown, settings.shown)
