"""Hires: a picture at the model's size, enlarged, noised to a strength and drawn on, in windows where it is too large.

As AUTOMATIC1111's hires fix: the second pass has the seed's noise at the larger size, and takes `hires_steps` steps of the part
of the schedule that the strength names.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.images import resize
from gen.io.validators import MAX_STEPS, check_float, check_int, check_size
from gen.pipeline.settings import Sampling, make_steps
from gen.pipeline.types import Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.canvas.task import make_canvas, make_record
from gen.tasks.declaration import Frame
from gen.tasks.edit.task import encode, shortened
from gen.tasks.hires.options import MOST, HiresKeywords, HiresRecord
from samplers.lookup import nearest

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe

STRENGTH, IN_WINDOWS = 0.5, 0.3  # windows that see a part invent things where more is made anew
UPSCALERS = ("picture", "latent")
BESIDE = ("hires", "variation", "encoding", "transparent")  # tasks that both passes have


@dataclass(frozen=True)
class Hires(Task):
    """second: the settings of the second pass, without tasks but its canvas."""

    hires: HiresRecord
    second: Settings

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(more_steps=len(self.second.levels) - 1)

    @classmethod
    def from_call(cls, model: Model, args: HiresKeywords, settings: Settings) -> tuple[Hires | None, Settings]:
        if args.hires is None:
            given = next(name for name, value in vars(args).items() if value is not None)
            raise ValueError(f"{given} was given without hires; say how many times as large with hires=2 (--hires 2).")
        scale = check_float("hires", args.hires, 1, MOST)
        if scale == 1:
            raise ValueError("hires is 1, which enlarges nothing; give more, or leave it out.")
        if settings.frame is not None:
            raise ValueError("hires goes without a canvas of windows, which makes any size by itself; leave it out.")
        if settings.unrecorded or settings.schedule == "table":
            raise ValueError("hires needs sampler, schedule, guidance and cache by name, and a schedule of any length.")
        window = _window(model, args.hires_window)
        strength = args.hires_strength
        if strength is None:
            strength = IN_WINDOWS if window else STRENGTH
        steps = settings.steps if args.hires_steps is None else args.hires_steps
        record = HiresRecord(
            scale=scale,
            strength=check_float("hires_strength", strength, 0.01, 1),
            steps=check_int("hires_steps", steps, 1, MAX_STEPS),
            upscaler=_upscaler(args.hires_upscaler),
            window=window,
        )
        height, width = target_size(model, settings, scale)
        if settings.shown not in (None, (height, width)):
            raise ValueError("hires makes the size itself; give use_resolution_binning=False (--no-bins), or leave hires out.")
        if (height, width) != (round(settings.height * scale), round(settings.width * scale)):
            warnings.warn(
                f"hires={scale:g} (--hires {scale:g}) makes {width} x {height}, the nearest size that the model's networks can "
                f"divide: {width / settings.width:.4g} times as wide and {height / settings.height:.4g} times as tall.",
                stacklevel=2,
            )
        second, record = second_settings(model, settings, record, height, width)
        return cls(record, second), replace(settings, shown=(height, width))

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> HiresKeywords | None:
        own = recipe.hires
        return None if own is None else HiresKeywords(own.scale, own.strength, own.steps, own.upscaler, own.window)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if other := next((name for name in settings.tasks if name not in BESIDE), None):
            raise ValueError(
                f"hires goes without {other}; leave one of them out, or enlarge the finished picture with upscale "
                "(fewstep upscale)."
            )

    def halve(self) -> Hires:
        """With half as many windows at once."""
        canvas = self.second.tasks.get("canvas")
        smaller = canvas and canvas.halve()
        if smaller is canvas or smaller is None:
            return self
        return replace(self, second=replace(self.second, tasks={"canvas": smaller}))

    def second_run(self, model: Model, latents: Tensor, settings: Settings) -> Settings:
        """Of the pass that goes on from latents (B, C, h, w)."""
        begun = HiresStart(self.enlarged(model, latents))
        shared = {name: task for name, task in settings.tasks.items() if name in BESIDE and name != "hires"}
        return replace(self.second, tasks={**shared, **self.second.tasks, "image": begun}, reading=settings.reading)

    def enlarged(self, model: Model, latents: Tensor) -> Tensor:
        """(B, C, h', w'), as the denoiser sees them."""
        height, width = self.second.height, self.second.width
        if self.hires.upscaler == "latent":
            size = height // model.factor, width // model.factor
            return F.interpolate(latents, size, mode="bilinear", align_corners=False)
        pictures = model.decode(latents).clamp(0, 1).cpu()
        larger = torch.cat([resize(picture[None], height, width) for picture in pictures]).to(latents.device)
        return torch.cat([encode(model, picture[None] * 2 - 1) for picture in larger]).to(latents.dtype)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"hires": self.hires}


@dataclass(frozen=True)
class HiresStart(Task):
    """The beginning of the second pass: the enlarged latents (B, C, h, w), noised."""

    latents: Tensor

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        return replace(batch, x=batch.settings.levels[0].mix(self.latents, batch.noise))


def target_size(model: Model, settings: Settings, scale: float) -> tuple[int, int]:
    """(height, width) of the finished picture: multiples of what the networks divide by."""
    multiple = model.factor * model.network.config.patch
    height, width = (max(round(side * scale / multiple), 1) * multiple for side in (settings.height, settings.width))
    return check_size(height, width, multiple, multiple)


def second_settings(
    model: Model, settings: Settings, record: HiresRecord, height: int, width: int
) -> tuple[Settings, HiresRecord]:
    """(settings of the second pass, with its canvas if it has windows; the record, with the window that it has)."""
    window = min(record.window, height, width)
    if window >= max(height, width):
        window = 0
    seen, patch = (window or height, window or width), model.factor * model.network.config.patch
    total = record.steps
    while int(total * record.strength) < record.steps:
        total = max(total + 1, math.floor(record.steps / record.strength))
    if total > MAX_STEPS:
        raise ValueError(
            f"{record.steps} steps at hires_strength {record.strength:g} are part of a schedule of {total}, more than "
            f"{MAX_STEPS}; give fewer hires_steps, or a greater strength."
        )
    options = {name: value for name, value in settings.schedule_options.items() if name not in ("tokens", "sampler")}
    sampling = Sampling(
        num_inference_steps=total,
        sampler=settings.sampler,
        sampler_options=settings.sampler_options,
        schedule=settings.schedule,
        schedule_options=options,
        recorded=True,
    )
    steps = make_steps(model, sampling, seen[0] * seen[1] // patch**2)
    tasks: dict[str, Task] = {}
    if window:
        canvas, _ = make_record(model, "upscale", window, None, "linear", False, 8, cache=settings.guidance.cache_name)
        tasks["canvas"] = make_canvas(model, canvas, None, height, width)
    frame = Frame((window, window)) if window else None
    second = replace(
        settings, height=height, width=width, seen=seen, shown=None, frame=frame, tasks=tasks, stop_at=None, **steps
    )
    return shortened(model, second, record.strength), record.model_copy(update={"window": window})


def _upscaler(name: object) -> Any:
    if name is None:
        return UPSCALERS[0]
    if name not in UPSCALERS:
        near = nearest(name, UPSCALERS)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(f"hires_upscaler is {name!r:.80}{hint}; say what is enlarged: picture or latent.")
    return name


def _window(model: Model, window: object) -> int:
    """Pixels, 0 for none. U-Nets see all unless asked, as hires fix does with them."""
    if window is None:
        inner = getattr(model.network, "network", model.network)
        return 0 if "unet" in type(inner).__name__.lower() else model.config.sample_size
    multiple = model.factor * model.network.config.patch
    size = check_int("hires_window", window, 0, 16_384)
    if size % multiple:
        raise ValueError(f"hires_window is {size}, which is not a multiple of {multiple}; give one that is, or 0 for none.")
    return size
