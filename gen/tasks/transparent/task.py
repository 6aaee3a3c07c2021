"""Transparent pictures: what the model draws, with the opacity that a network finds, and without what is behind.

Source: LayerDiffuse (arXiv 2402.17113), whose decoder sees the picture and its latents; here beside a model that is
left as it is, so that every LoRA, sampler and task stays valid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gen.io.alpha import straighten
from gen.models.transparency import OpenedTransparency, open_transparency
from gen.pipeline.types import Crop, Decode, Item, Settings, Task
from gen.tasks.transparent.options import TransparentKeywords, TransparentRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe


@dataclass(frozen=True)
class Transparent(Task):
    """opened: the network that finds the opacity."""

    opened: OpenedTransparency

    @classmethod
    def from_call(cls, model: Model, args: TransparentKeywords, settings: Settings) -> tuple[Transparent | None, Settings]:
        if args.transparent is not None and not isinstance(args.transparent, bool):
            raise ValueError(f"transparent is {args.transparent!r:.80}; give True for a picture with alpha, or leave it out.")
        if not args.transparent:
            if args.transparency is not None:
                raise ValueError("transparency was given without transparent; give transparent=True (--transparent) too.")
            return None, settings
        if getattr(model.network, "whole", False) or (model.autoencoder is None and model.channels != 3):
            raise ValueError(f"{model.name!r} shows no pictures whose opacity could be found; leave transparent out.")
        return cls(open_transparency(model, args.transparency)), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> TransparentKeywords | None:
        given = keywords.get("transparency")
        if recipe.transparent is None:
            if given is not None or keywords.get("transparent"):
                raise ValueError("The picture was made without alpha; leave transparent and transparency out.")
            return None
        return TransparentKeywords(True, given)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        record = None if recipe is None else recipe.transparent
        if record is not None and record.network != self.opened.digest:
            raise ValueError(
                "The network that made this picture transparent is another one: its sha256 differs; give its folder as "
                "transparency (--transparency)."
            )

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """Pictures (B, 4, H, W) in [0, 1], colours not multiplied by alpha, as files have them."""
        pictures = decode(latents, crop)
        own = latents / model.config.latent_scale
        whole = tuple(side * model.factor for side in own.shape[2:]) == tuple(pictures.shape[2:])
        seen = own if whole and model.autoencoder is not None and len(own) == len(pictures) else None
        return straighten(self.opened.separate(pictures, seen)[0])

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"transparent": TransparentRecord(network=self.opened.digest)}
