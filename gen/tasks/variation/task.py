"""Variations: pictures near that of a seed, by noise that is turned towards the noise of other seeds."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gen.io.validators import SEED_END, check_float, check_int
from gen.pipeline.types import Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.variation.options import VariationKeywords, VariationRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe

STRENGTH = 0.2


@dataclass(frozen=True)
class Variation(Task):
    """first: the variation seed of the first picture of each seed. strength: above 0."""

    first: int
    strength: float

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(one_seed=True)

    @classmethod
    def from_call(cls, model: Model, args: VariationKeywords, settings: Settings) -> tuple[Variation | None, Settings]:
        usual = STRENGTH if args.variation_strength is None else args.variation_strength
        strength = check_float("variation_strength", usual, 0, 1)
        seed = secrets.randbelow(1 << 32) if args.variation_seed is None else args.variation_seed
        first = check_int("variation_seed", seed, 0, SEED_END - 1)
        return (cls(first, strength) if strength else None), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> VariationKeywords | None:
        if any(keywords.get(name) is not None for name in ("variation_seed", "variation_strength")):
            raise ValueError("The recipe says by itself which seeds its noise is made of; leave the variation out.")
        recorded = recipe.variation
        return None if recorded is None else VariationKeywords(recorded.seed, recorded.strength)

    def change_items(self, items: list[Item], per_prompt: int, recipe: Recipe | None = None) -> list[Item]:
        if any(item.latent is not None for item in items):
            raise ValueError("latents are the noise itself, which no variation seed changes; give one of them.")
        if recipe is not None:
            return [replace(item, variation=self.first) for item in items]
        before: Counter[int] = Counter()
        changed = []
        for item in items:
            changed.append(replace(item, variation=self.first + before[item.seed]))
            before[item.seed] += 1
        check_int("variation_seed", self.first + max(before.values(), default=1) - 1, 0, SEED_END - 1)
        return changed

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        from samplers.editing.interpolation import slerp_columns
        from samplers.noise import normal

        rows = [row for row, item in enumerate(batch.items) if item.variation is not None]  # not a picture to refer to
        seeds = [item.variation for item in batch.items if item.variation is not None]
        shape, kind = batch.noise.shape[1:], batch.settings.noise_kind
        others = normal(seeds, shape, "latents", device=batch.noise.device, kind=kind)
        noise = batch.noise.clone()
        noise[rows] = slerp_columns(batch.noise[rows], others, self.strength)
        return replace(batch, noise=noise, x=noise * batch.settings.levels[0].sigma)

    def record_one(self, item: Item) -> dict[str, Any]:
        if item.variation is None:
            return {}
        return {"variation": VariationRecord(seed=item.variation, strength=self.strength)}
