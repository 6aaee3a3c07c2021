"""Canvases: pictures larger than a model makes, from windows of the size that it knows (`samplers.canvas`).

A checked request is a `CanvasRecord`, as recipes hold it, in pixels; a `Canvas` is one in the latents of a model, ready to run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.images import read_picture
from gen.io.validators import check_float, check_int, check_side
from gen.nn.conditions import pad_to_longest
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Crop, Decode, Item, ReadPrompts, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.canvas.options import CanvasArguments, CanvasRecord
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.shifted import ShiftedWindows
from samplers.canvas.windows import PROFILES, Windows
from samplers.denoiser import Condition, Denoiser

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.sample import Solver

MAX_WINDOWS = 10_000
WHOLE, OVERLAP = 1024, 128  # pixels on the side of what is decoded at once, and in common of two parts
WRAP = 64  # pixels of the other end that a circular canvas is decoded with
CIRCULAR = {"none": (False, False), "horizontal": (False, True), "vertical": (True, False), "both": (True, True)}
DISTANCES = ("latent", "pictures")

Distance = Callable[[Tensor, Tensor], Tensor]  # of pictures (N, 3, H, W) in [0, 1], twice -> (N,)


@dataclass(frozen=True)
class RuntimeObjects:
    """What a caller brings that no recipe holds.

    distance: of SyncDiffusion, on pictures.
    group: of torch.distributed, over whose processes windows are spread.
    """

    distance: Distance | None = None
    group: Any = None


@dataclass(frozen=True)
class Canvas(Task):
    """A checked request. windows: in latents."""

    canvas: CanvasRecord
    windows: Windows | ShiftedWindows
    runtime: RuntimeObjects = RuntimeObjects()

    @classmethod
    def from_call(cls, model: Model, args: CanvasArguments, settings: Settings) -> tuple[Canvas, Settings]:
        return make_canvas(model, args.record, args.runtime, settings.height, settings.width), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> CanvasArguments:
        return CanvasArguments(recipe.canvas)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if getattr(settings.tasks.get("composition"), "masks", None):
            raise ValueError("The masks of regions are for one picture, not for windows of a canvas; leave regions out.")

    @property
    def traits(self) -> TaskTraits:
        own_distance = self.canvas.sync and self.runtime.distance is not None
        unrecorded = ("distance of SyncDiffusion",) if own_distance else ()
        return TaskTraits(one_prompt=bool(self.canvas.prompts), unrecorded=unrecorded)

    def map_texts(self, read: Callable[[str], str]) -> Canvas:
        return replace(self, canvas=self.canvas.model_copy(update={"prompts": tuple(map(read, self.canvas.prompts))}))

    def halve(self) -> Canvas:
        """With half as many windows at once."""
        if self.canvas.batch == 1:
            return self
        if self.runtime.group is not None:
            raise ValueError(
                f"{self.canvas.batch} windows at once do not fit in the memory of one of the processes; give a smaller "
                "window_batch."
            )
        return replace(self, canvas=self.canvas.model_copy(update={"batch": max(1, self.canvas.batch // 2)}))

    def read_prompts(self, model: Model, prompts: list[str], adapters: Mapping[str, float], read: ReadPrompts) -> Condition:
        return read(list(self.canvas.prompts[:1]) * len(prompts) or prompts)  # of several, see `_conditions`

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        """With a negative condition of as many tokens as the several prompts have."""
        return replace(batch, negative=self._conditions(batch)[1])

    def _conditions(self, batch: SamplingBatch) -> tuple[list[Condition], Condition | None]:
        """One condition for each of several prompts, and the negative one."""
        condition, negative = batch.condition, batch.negative
        if not self.canvas.prompts:
            return [], negative
        texts = batch.model.encode_prompt(self.canvas.prompts, batch.settings.adapters, reading=batch.settings.reading)
        if negative is not None:
            texts, negative = pad_to_longest([texts, negative])
        rows = [texts[k : k + 1] for k in range(len(self.canvas.prompts))]
        return [replace(text, label=condition.label, extra={**text.extra, **condition.extra}) for text in rows], negative

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        """(denoiser, solver) of the whole canvas: around guidance and caches."""
        model, windows, record = batch.model, self.windows, self.canvas
        conditions, seeds = self._conditions(batch)[0], tuple(batch.seeds)
        if isinstance(windows, ShiftedWindows):
            windows = replace(windows, seeds=seeds)
        check_agreement(self.runtime.group, (record.model_dump_json(), seeds))

        def chosen(down: float, across: float) -> int:  # each prompt has an equal part of the width
            return min(int(across * len(conditions)), len(conditions) - 1)

        canvas = MultiDiffusion(denoiser, windows, conditions, chosen if conditions else (), record.batch, self.runtime.group)
        if record.recurrence > 1:
            from samplers.guidance.recurrent import Recurrent

            solver = Recurrent(solver, record.recurrence)
        if not record.sync:
            return canvas, solver
        from samplers.canvas.sync_diffusion import SyncDiffusion, style_distance

        distance: Distance = style_distance
        if record.sync_distance != "latent":
            distance = _on_pictures(model, self.runtime.distance or style_distance)
        return canvas, SyncDiffusion(solver, distance, record.sync)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"canvas": self.canvas}

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """Large canvases in parts that fade into one another, circular ones with their other end beside them."""
        images = self._decode(model, latents, lambda part: decode(part, None))
        return images if crop is None else crop(images)

    def _decode(self, model: Model, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        factor = model.factor
        if model.autoencoder is None:
            return decode(latents)
        down, across = (
            min(WRAP // factor, n) if wrap else 0 for n, wrap in zip(self.windows.canvas, self.windows.wrap, strict=True)
        )
        if down or across:
            latents = F.pad(latents, (across, across, down, down), mode="circular")
        height, width = latents.shape[2:]
        if height * width * factor**2 <= WHOLE**2:
            images = decode(latents)
        else:
            from gen.models.tiling import tiled

            parts = [tiled(latent[None], decode, WHOLE // factor, OVERLAP // factor, factor) for latent in latents]
            images = torch.cat(parts)
        top, left = down * factor, across * factor
        return images[..., top : images.shape[2] - top, left : images.shape[3] - left]


def make_canvas(model: Model, record: CanvasRecord, runtime: RuntimeObjects | None, height: int, width: int) -> Canvas:
    """ValueError for windows that do not fit the canvas or the model."""
    runtime = runtime or RuntimeObjects()
    multiple, factor = model.factor * model.network.config.patch, model.factor
    for name, sides, unit in (("window", record.window, multiple), ("stride", record.stride, factor)):
        for value in sides:
            check_side(f"the {name} of the canvas", value, 0, unit)
    for name, length, window, stride in zip(("tall", "wide"), (height, width), record.window, record.stride, strict=True):
        if window > length:
            raise ValueError(
                f"Windows of {window} pixels do not fit a canvas that is {length} {name}; make it larger, or give a smaller "
                "window."
            )
        if stride > window:
            raise ValueError(f"A stride of {stride} leaves gaps between windows of {window}; give at most {window}.")
    down, across = (-(-n // stride) for n, stride in zip((height, width), record.stride, strict=True))
    if down * across > MAX_WINDOWS:
        raise ValueError(f"The canvas would have some {down * across} windows, more than {MAX_WINDOWS}; give a larger stride.")
    if record.weights not in PROFILES:
        raise ValueError(f"Unknown window weights {record.weights!r:.80}: choose one of {', '.join(PROFILES)}.")
    if record.sync and runtime.group is not None:
        raise ValueError("SyncDiffusion needs all windows in one process; leave sync out, or group.")
    if record.sync and runtime.distance is None and record.sync_distance not in DISTANCES:
        raise ValueError(
            "The distance of SyncDiffusion is its maker's own function, which no recipe can hold."
            if not record.sync_distance
            else _unknown_distance(record.sync_distance)
        )
    canvas, window_size, step = (
        (sides[0] // factor, sides[1] // factor) for sides in ((height, width), record.window, record.stride)
    )
    if record.shift_from is None:
        return Canvas(record, Windows.regular(canvas, window_size, step, record.weights, record.circular), runtime)
    start = record.shift_from if record.shift_from > -20 else -math.inf  # pure noise too
    shifted = ShiftedWindows(canvas, window_size, step, record.weights, record.circular, interval=(start, math.inf))
    return Canvas(record, shifted, runtime)


def make_record(
    model: Model | Caller,
    kind: str,
    window: Any,
    stride: Any,
    weights: Any,
    circular: Any,
    window_batch: Any,
    prompts: Sequence[str] = (),
    sync: Any = 0.0,
    sync_distance: Any = "latent",
    recurrence: Any = 1,
    extend: tuple[int, int, int, int] | None = None,
    shift_from: Any = None,
    group: Any = None,
    cache: Any = None,
) -> tuple[CanvasRecord, RuntimeObjects]:
    """(what a recipe holds, what it does not), with defaults filled in; ValueError says what cannot be.

    window: the model's own size.
    stride: half of it.
    """
    unit = model.factor
    window = _sides("window", (model.config.sample_size,) * 2 if window is None else window)
    stride = tuple(max(n // 2 // unit, 1) * unit for n in window) if stride is None else _sides("stride", stride)
    name = "horizontal" if circular is True else "none" if circular is False else circular
    if not isinstance(name, str) or name not in CIRCULAR:
        raise ValueError(f"circular is {circular!r}; choose one of {', '.join(CIRCULAR)}; true is horizontal.")
    distance = sync_distance if callable(sync_distance) else _lpips(sync_distance)
    if distance is None and isinstance(sync_distance, str) and sync_distance not in DISTANCES:
        raise ValueError(_unknown_distance(sync_distance))
    if shift_from is not None and cache:
        raise ValueError("A cache repeats what a window showed a step before, and windows that shift are elsewhere then; leave "
                         "cache or shift_from out.")  # fmt: skip
    if len(prompts) > 100:
        raise ValueError(f"{len(prompts)} prompts were given; at most 100 are spread along a canvas.")
    if not isinstance(weights, str) or not (distance or isinstance(sync_distance, str)):
        raise ValueError("Window weights are given by name, and sync_distance by name or as a function.")
    if weights not in PROFILES:
        raise ValueError(f"Unknown window weights {weights!r:.80}: choose one of {', '.join(PROFILES)}.")
    record = CanvasRecord(
        kind=kind,  # type: ignore[arg-type]
        window=window,
        stride=stride,
        weights=weights,
        circular=CIRCULAR[name],
        batch=check_int("window_batch", window_batch, 1, 1024),
        prompts=tuple(prompts),
        sync=check_float("sync", sync, 0, 1e6),
        sync_distance="" if distance else sync_distance,
        recurrence=check_int("recurrence", recurrence, 1, 100),
        extend=extend,
        shift_from=None if shift_from is None else check_float("shift_from", shift_from, -20, 20),
    )
    return record, RuntimeObjects(distance, group)


def check_agreement(group: Any, call: tuple) -> None:
    """ValueError on every process of a group unless all of them make the same picture."""
    if group is None:
        return
    everyone: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(everyone, call, group=group)
    if any(other != everyone[0] for other in everyone):
        raise ValueError(
            "The processes of a group share one canvas, and were asked for different ones; give all of them the same seed and "
            "the same options."
        )


def made_size(model: Model | Caller, record: CanvasRecord, height: int, width: int) -> tuple[int, int]:
    """The canvas for a picture of any size: whole latents, at least a window."""
    up = (-(-n // model.factor) * model.factor for n in (height, width))
    down, across = (max(n, window) for n, window in zip(up, record.window, strict=True))
    return down, across


def starting_pictures(record: CanvasRecord, image: Any, shown: tuple[int, int], made: tuple[int, int]) -> tuple[Tensor, Any]:
    """(picture, mask) that fill a canvas `made`: (1, 3, H, W) and (1, 1, H, W), or no mask.

    An upscaled picture is enlarged to `shown`; one to paint around is set where `extend` says, and the mask is 1 around it.
    What is missing repeats the edge.
    """
    picture = read_picture("image", image, "RGB")
    if any(side < part for side, part in zip(made, shown, strict=True)):
        raise ValueError(f"A canvas of {made[1]} x {made[0]} does not hold a picture of {shown[1]} x {shown[0]}.")
    if record.kind == "upscale":
        if tuple(picture.shape[2:]) != shown:
            picture = F.interpolate(picture, shown, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        return F.pad(picture, (0, made[1] - shown[1], 0, made[0] - shown[0]), mode="replicate"), None
    assert record.extend is not None
    left, top, right, bottom = record.extend
    size = tuple(n + more for n, more in zip(picture.shape[2:], (top + bottom, left + right), strict=True))
    if size != shown:
        raise ValueError(f"The picture with what is painted around it has {size[1]} x {size[0]} pixels, not "
                         f"{shown[1]} x {shown[0]}: it is not the one that the recipe is of.")  # fmt: skip
    right, bottom = right + made[1] - shown[1], bottom + made[0] - shown[0]
    mask = F.pad(torch.zeros_like(picture[:, :1]), (left, right, top, bottom), value=1.0)
    return F.pad(picture, (left, right, top, bottom), mode="replicate"), mask


def replayed_pictures(recipe: Recipe, image: Any, mask: Any) -> tuple[Any, Any]:
    """The picture and mask that a canvas began with, of the picture that its maker gave."""
    record = recipe.canvas
    if record is None or record.kind == "panorama" or image is None:
        return image, mask
    if mask is not None:
        raise ValueError("The picture was made without a mask of its maker's; leave it out.")
    shown = recipe.height, recipe.width
    return starting_pictures(record, image, shown, recipe.made_at or shown)


def _sides(name: str, value: Any) -> tuple[int, int]:
    """(height, width) from one number or two."""
    sides = (value, value) if isinstance(value, int) else value
    if not isinstance(sides, list | tuple) or len(sides) != 2:
        raise ValueError(f"{name} is {value!r}; give a number of pixels, or a height and a width.")
    height, width = (check_int(name, side, 1, 16_384) for side in sides)
    return height, width


def _unknown_distance(name: str) -> str:
    return f"Unknown sync_distance {name!r}: choose latent or pictures, or give a function, or weights of LPIPS as lpips:FILE."


def _lpips(name: Any) -> Distance | None:
    """LPIPS, of "lpips:FILE"; None for another name. A recipe does not hold it, as it must not have files opened."""
    if not isinstance(name, str) or not name.startswith("lpips:"):
        return None
    from gen.tasks.energies.lpips import load_lpips

    network = load_lpips(name.removeprefix("lpips:"))
    return lambda x, anchor: network.to(x.device)(2 * x.float() - 1, 2 * anchor.float() - 1)


def _on_pictures(model: Model, distance: Distance) -> Distance:
    """Of what the denoiser works on, through the decoder, which is differentiated."""
    from gen.tasks.energy_guidance.task import decode_open

    return lambda x, anchor: distance(*(decode_open(model, latents) for latents in (x, anchor)))
