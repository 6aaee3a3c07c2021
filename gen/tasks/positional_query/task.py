"""Outpainting in one pass, to any factor and at any place, by a model with positional queries (PQDiff, arXiv 2401.15652).

The picture is the anchor, and the larger one the target, which the network draws at about its own size whatever the factor; it
is then scaled to its size, and the picture put back to the pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.images import digest, read_picture
from gen.models.buckets import check_size
from gen.nn.backbones.positional_query import asks, relative_window
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Crop, Decode, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.edit.task import check_given, encode, nearest_size
from gen.tasks.positional_query.options import AroundArguments, AroundRecord
from samplers.denoiser import Condition
from samplers.path import wide_dtype

if TYPE_CHECKING:
    from gen.models.model import Model


@dataclass(frozen=True)
class Around(Task):
    """picture: (1, 3, H, W) in [0, 1]. anchor: its latents at the target's size (1, C, h, w). window: (1, 4) of the target."""

    picture: Tensor
    anchor: Tensor
    window: Tensor
    record_: AroundRecord

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(always_guided=True, chooses_size=True)

    @classmethod
    def from_call(cls, model: Model, args: AroundArguments, settings: Settings) -> tuple[Around, Settings]:
        picture = read_picture("image", args.image, "RGB")
        left, top, right, bottom = args.extend
        rows, columns = picture.shape[-2:]
        target = torch.tensor([[-top, -left, rows + top + bottom, columns + left + right]], dtype=torch.float64)
        window = relative_window(target, torch.tensor([[0, 0, rows, columns]], dtype=torch.float64))
        scaled = F.interpolate(
            picture, (settings.height, settings.width), mode="bilinear", align_corners=False, antialias=True
        ).clamp(0, 1)
        record = AroundRecord(image=digest(picture), extend=args.extend)
        anchor = encode(model, scaled.to(model.device) * 2 - 1)
        return cls(picture, anchor, window.to(model.device, wide_dtype(model.device)), record), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> AroundArguments | None:
        if recipe.around is None:
            return None
        check_given(recipe.around, keywords.get("image"), keywords.get("mask"))
        return AroundArguments(keywords.get("image"), recipe.around.extend)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for name in settings.tasks:
            if name not in ("around", "encoding"):
                raise ValueError(f"A picture painted around by positional queries goes without {name}; leave one of them out.")
        if recipe is not None and recipe.around is not None and recipe.around.image != self.record_.image:
            raise ValueError("This image is not the one that was painted around: its sha256 differs.")

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        def told(condition: Condition, seen: bool) -> Condition:
            rows = len(batch.noise)
            anchor, window = self.anchor.expand(rows, -1, -1, -1), self.window.expand(rows, -1)
            return replace(condition, extra={**condition.extra, **asks(anchor, window, anchor.new_full((rows,), float(seen)))})

        return replace(batch, condition=told(batch.condition, True), negative=batch.negative and told(batch.negative, False))

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        images = decode(latents, None)
        left, top, right, bottom = self.record_.extend
        rows, columns = self.picture.shape[-2:]
        size = rows + top + bottom, columns + left + right
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        images = images.clone()
        images[..., top : top + rows, left : left + columns] = self.picture.to(images)
        return images

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"around": self.record_}


def paint_around(generator: Caller, picture: Tensor, prompt: Any, extend: tuple[int, int, int, int], **call: Any) -> Output:
    """`Generator.outpaint` with a model of positional queries. picture: (1, 3, H, W); extend: pixels on each side."""
    for name in ("height", "width", "mask", "latents"):
        if call.get(name) is not None:
            raise ValueError(f"{name} is given by the picture itself here; leave it out.")
    left, top, right, bottom = extend
    shown = picture.shape[2] + top + bottom, picture.shape[3] + left + right
    check_size(*shown, 1, 1)  # not too large
    own: Any = generator
    made = nearest_size(shown, None, None, generator.config.sample_size, generator.factor * own.network.config.patch)
    call |= {"height": made[0], "width": made[1]}
    return generator(prompt, **call, _task_args={"around": AroundArguments(picture, extend)})
