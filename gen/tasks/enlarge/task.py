"""Pictures made larger by a network that was trained to (`gen.nn.backbones.upsampler`): the run begins with noise, beside which
the network reads the enlarged picture, noised to a level that it is told.

A pass enlarges by the network's own factor. More is several passes, less is one, whose picture is then reduced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from gen.io.images import digest, read_picture
from gen.io.validators import check_float, check_size
from gen.nn.backbones.upsampler import LEVEL, shown_picture
from gen.pipeline.recipe import Recipe
from gen.pipeline.subjects import draw_seeds
from gen.pipeline.types import Crop, Decode, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.edit.task import check_given, check_same
from gen.tasks.enlarge.options import EnlargeArguments, EnlargementRecord
from samplers.denoiser import Condition
from samplers.noise import normal

if TYPE_CHECKING:
    from gen.models.model import Model

LARGEST_PASSES = 4
WINDOW, OVERLAP = 512, 64  # pixels of a window, and in common of two, of a network that takes any size


@dataclass(frozen=True)
class Enlarge(Task):
    """A checked request. small: (1, 3, h, w) in [-1, 1], filled up at the right and bottom by its edge; size: of what is
    shown; whole: height and width of the picture at the network's factor, without what was filled up."""

    begun: EnlargementRecord
    small: Tensor
    size: tuple[int, int]
    whole: tuple[int, int]

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(chooses_size=True)

    @classmethod
    def from_call(cls, model: Model, args: EnlargeArguments, settings: Settings) -> tuple[Enlarge, Settings]:
        factor, picture = sizes_of(model).factor, args.picture
        down, across = (
            side // factor - own for side, own in zip((settings.height, settings.width), picture.shape[2:], strict=True)
        )
        small = F.pad(2 * picture.float() - 1, (0, across, 0, down), mode="replicate")
        whole = picture.shape[2] * factor, picture.shape[3] * factor
        return cls(args.record, small.to(model.device), args.size, whole), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> EnlargeArguments | None:
        record = recipe.enlargement
        if record is None:
            return None
        check_given(record, keywords.get("image"), keywords.get("mask"))
        picture = read_picture("image", keywords["image"], "RGB")
        begun = record.model_copy(update={"image": digest(picture)})
        check_same(begun, record)
        earlier = {"num_inference_steps": recipe.num_inference_steps, "seed": record.seed, "prompt": recipe.prompt or None}
        if model.classes:
            earlier |= {"prompt": None, "class_labels": -1 if recipe.class_label is None else recipe.class_label}
        picture = before_last(model, picture, record, earlier)
        return EnlargeArguments(record, picture, (recipe.height, recipe.width))

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for name in ("hires", "refiner", "layout", "views", "restoration", "translation", "image", "transparent"):
            if name in settings.tasks:
                raise ValueError(f"A model that enlarges begins with noise, which goes without {name}; leave one of them out.")

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        config, count = sizes_of(batch.model), len(batch.noise)
        small = self.small.expand(count, *self.small.shape[1:])
        eps = normal(batch.seeds, small.shape[1:], "enlarged", device=batch.noise.device, kind=batch.settings.noise_kind)
        level = batch.noise.new_full((count,), self.begun.noise)
        size = (batch.noise.shape[2], batch.noise.shape[3])
        image, level = shown_picture(small, eps, level, batch.model.denoiser.path, size, config.enlarging)

        def beside(condition: Condition) -> Condition:
            return replace(condition, image=image, extra={**condition.extra, LEVEL: level})

        return replace(batch, condition=beside(batch.condition), negative=batch.negative and beside(batch.negative))

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        images = decode(latents, None)[..., : self.whole[0], : self.whole[1]]
        if self.whole == self.size:
            return images
        return F.interpolate(images, self.size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"enlargement": self.begun}


def enlarges(model: Any) -> bool:
    """Does a model's network read a picture to enlarge?"""
    config = getattr(model.network, "config", None)
    return getattr(config, "factor", 1) > 1 and hasattr(config, "enlarging")


def sizes_of(model: Any) -> Any:
    """The config of a network that enlarges; ValueError for another."""
    if not enlarges(model):
        raise ValueError(
            f'The model {model.name!r} was not trained to enlarge pictures; give one that was, such as the packaged "upscale".'
        )
    return model.network.config


def passes_for(scale: float, factor: int) -> int:
    """How many passes make a picture at least `scale` times as large."""
    return next(passes for passes in range(1, LARGEST_PASSES + 1) if factor**passes >= scale)


def check_noise(model: Any, noise_level: object) -> float:
    """A level of noise that the network was trained with; its lowest if None."""
    low, high = sizes_of(model).noise
    if noise_level is None:
        return low
    return check_float("noise_level", noise_level, low, high)


def make_enlargement(
    model: Any, image: Any, scale: object, noise_level: object, call: Mapping[str, Any]
) -> tuple[EnlargeArguments, tuple[int, int]]:
    """(arguments of the task, height and width at which its last pass is made). call: keywords that all passes have.

    ValueError for a picture, scale or level that cannot be used, and for a model that does not enlarge.
    """
    config, picture = sizes_of(model), read_picture("image", image, "RGB")
    scale = check_float("scale", scale, 1, 16)
    height, width = picture.shape[2:]
    size = round(height * scale), round(width * scale)
    check_size(*size, 1, 1)  # not too large
    passes = passes_for(scale, config.factor)
    seed = call.get("seed") if passes > 1 else None
    noise = check_noise(model, noise_level)
    record = EnlargementRecord(image=digest(picture), scale=scale, noise=noise, passes=passes, seed=seed)
    picture = before_last(model, picture, record, call)
    unit = math.lcm(config.factor, config.patch)
    made = [-(-side * config.factor // unit) * unit for side in picture.shape[2:]]
    made = made if takes_any_size(config) else [max(side, config.size) for side in made]
    return EnlargeArguments(record, picture, size), (made[0], made[1])


def before_last(model: Any, picture: Tensor, record: EnlargementRecord, call: Mapping[str, Any]) -> Tensor:
    """What the last pass enlarges, (1, 3, h, w) in [0, 1]: the picture after all passes but one."""
    factor = sizes_of(model).factor
    for _ in range(record.passes - 1):
        if call.get("_check_only"):
            picture = F.interpolate(picture, scale_factor=factor, mode="nearest")
            continue
        picture = model.upscale(
            picture[0], scale=factor, noise_level=record.noise, output_type="pt", progress=False, **call
        ).images.float()
    return picture


def takes_any_size(config: Any) -> bool:
    """Does a network make pictures of any size as well as those it was trained at? It does without attention."""
    return bool(getattr(config, "any_size", False))


def window_of(config: Any, made: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(window, stride) by default, in pixels: all of the picture where the network takes any size and it is not large."""
    if not takes_any_size(config):
        return (config.size, config.size), (max(config.size // 2, 1),) * 2
    window = min(made[0], WINDOW), min(made[1], WINDOW)
    return window, (max(window[0] - OVERLAP, config.patch), max(window[1] - OVERLAP, config.patch))


def with_one_seed(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with the seed that several passes begin with, drawn here if none is given; seeds may hold one."""
    seeds = call.get("seeds")
    alone = isinstance(seeds, list | tuple) and len(seeds) == 1 and call.get("seed") is None
    given = {"seeds": seeds is not None and not alone, "generator": call.get("generator") is not None}
    if wrong := next((name for name, there in given.items() if there), None):
        raise ValueError(f"Passes one after another share one seed; give seed in the place of {wrong}.")
    seed = draw_seeds(1, seeds[0] if alone and seeds else call.get("seed"), None, None)[0]
    return {**{name: value for name, value in call.items() if name != "seeds"}, "seed": seed}
