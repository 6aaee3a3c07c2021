"""How several adapters make one picture, as a call asks for it: a composition by name, or a region for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from gen.io.validators import Option, check_float, check_option_values
from gen.nn.conditions import with_picture_size
from gen.pipeline.types import Item, SamplingBatch, Settings, Task
from gen.tasks.lora_composition.options import CompositionKeywords

if TYPE_CHECKING:
    from torch import Tensor

    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe
    from samplers.denoiser import Denoiser
    from samplers.path import NoiseLevel

REGIONAL = "regional"
PROBES = 2  # pictures by which the order of adapters is measured


@dataclass(frozen=True)
class Composition(Task):
    """A checked request.

    name: "merge" is what adapters do by themselves.
    masks: adapter -> (1, 1, H, W) in [0, 1], where it acts.
    digests: of the masks, for the recipe.
    adapters: name -> weight of those in force.
    """

    name: str = "merge"
    options: Mapping[str, Option] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, float] = field(default_factory=dict)
    levels: tuple[NoiseLevel, ...] = ()

    @classmethod
    def from_call(cls, model: Model, args: CompositionKeywords, settings: Settings) -> tuple[Composition | None, Settings]:
        name, options, regions = args.composition, args.composition_options, args.regions
        adapters, levels, size = settings.adapters, settings.levels, (settings.height, settings.width)
        return make_composition(model, name, options, regions, adapters, levels, *settings.seen, size), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> CompositionKeywords:
        """ValueError where the mask of a region is missing, or was not there."""
        regions = keywords.get("regions")
        if set(recipe.regions) != set(regions or {}):
            names = ", ".join(map(repr, recipe.regions)) or "none"
            raise ValueError(f"The picture was made with regions for {names}; give their masks again as regions (--region).")
        return CompositionKeywords(recipe.composition, recipe.composition_options, regions)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if recipe is None:
            return
        for name, digest in recipe.regions.items():
            if self.digests[name] != digest:
                raise ValueError(f"The mask of {name!r} is not the one that the picture was made with: its sha256 differs.")

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch | None = None) -> Denoiser:
        if self.name == "merge":
            return denoiser
        if self.name == REGIONAL:
            from samplers.composition import AdapterRegion, Regional

            return Regional(denoiser, tuple(AdapterRegion(mask, (n,)) for n, mask in self.masks.items()), **self.options)  # type: ignore[arg-type]
        from samplers.composition import get_composition

        return get_composition(self.name, denoiser, self.adapters, self.levels, **self.options)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        name = "" if self.name == "merge" else self.name
        return {"composition": name, "composition_options": dict(self.options), "regions": dict(self.digests)}


def make_composition(
    model: Model,
    name: object,
    options: object,
    regions: object,
    adapters: Mapping[str, float],
    levels: tuple[NoiseLevel, ...],
    height: int,
    width: int,
    picture_size: tuple[int, int],
) -> Composition | None:
    """None where adapters act by themselves. ValueError says what is unknown, missing or does not go together. Without a name,
    regions make it regional.

    height, width: pixels that the network sees at once.
    picture_size: those of the picture.
    """
    if name in (None, "", "merge") and not options and not regions:
        return None
    chosen = check_option_values("composition_options", options or {})
    if regions or name == REGIONAL:
        if name not in (None, "", REGIONAL):
            raise ValueError(f"regions were given with the composition {name!r}; leave one of them out.")
        masks, digests = _masks(regions, adapters, height, width, picture_size)
        if unknown := [option for option in chosen if option != "start"]:
            raise ValueError(f"composition_options has no {unknown[0]!r}: regional takes start.")
        if "start" in chosen:
            chosen["start"] = check_float("composition_options['start']", chosen["start"], -1000, 1000)
        return Composition(REGIONAL, chosen, masks, digests)
    from samplers.composition import composition_info
    from samplers.lookup import check_options as check_known_options

    info = composition_info("merge" if name in (None, "") else name)  # type: ignore[arg-type]
    check_known_options(info, chosen, "composition")
    if info.ordered and "order" not in chosen and sum(w != 0 for w in adapters.values()) > 1:
        chosen["order"] = measured_order(model, adapters, levels, height, width)
    composed = Composition(info.name, chosen, adapters=dict(adapters), levels=levels)
    composed.wrap_network(model.denoiser)  # options are checked here
    return composed


@torch.no_grad()
def measured_order(
    model: Model, adapters: Mapping[str, float], levels: tuple[NoiseLevel, ...], height: int, width: int
) -> tuple[int, ...]:
    """Positions of the adapters in force, from the one that changes fine detail to the one that changes coarse form.

    Measured without a prompt, on noise of seeds 0 and 1 at the level of the run whose log-SNR is nearest to 0, so that it is
    the same for every picture of this size.
    """
    from samplers.composition import frequency_order
    from samplers.denoiser import Condition, Context
    from samplers.noise import normal

    seeds = list(range(PROBES))
    shape = (model.channels, height // model.factor, width // model.factor)
    noise = normal(seeds, shape, "latents", device=model.device)
    level = min(levels, key=lambda level: abs(level.logsnr))
    condition = Condition()
    if model.text_encoder is not None:
        model.read_null(adapters)
        condition = model.encode_prompt([""] * PROBES, adapters)
    if model.classes:
        condition = replace(condition, label=torch.full((PROBES,), -1, device=model.device))
    condition = with_picture_size(condition, model, PROBES, (height, width))
    names = [name for name, weight in adapters.items() if weight != 0]
    positions = frequency_order(model.denoiser, level.sigma * noise, level, condition, Context(adapters=dict(adapters)))
    return tuple(names.index(name) for name in positions)


def _masks(
    regions: Any, adapters: Mapping[str, float], height: int, width: int, picture_size: tuple[int, int]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    from gen.io.images import digest, fit, read_picture
    from gen.tasks.edit.task import check_shape
    from samplers.composition.adapter_batch import check_known

    if not isinstance(regions, Mapping) or not regions or not all(isinstance(name, str) for name in regions):
        raise ValueError("regions must say where adapters act: a dict of adapter names and masks (white is inside).")
    check_known(list(regions), adapters, "A region")
    masks = {}
    for name, source in regions.items():
        mask = read_picture(f"the mask of {name!r}", source, "L")
        check_shape(f"The mask of {name!r}", mask, picture_size, "picture")
        masks[name] = fit(mask, height, width)
    return masks, {name: digest(mask) for name, mask in masks.items()}
