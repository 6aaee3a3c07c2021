"""Pictures whose noise is that of a seed turned towards other seeds, as a search found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gen.pipeline.types import Item, SamplingBatch, Settings, Task
from gen.tasks.search.options import SearchArguments, TurnRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe


@dataclass(frozen=True)
class FoundNoise(Task):
    """turns: of each picture of the call."""

    turns: tuple[tuple[TurnRecord, ...], ...]

    @classmethod
    def from_call(cls, model: Model, args: SearchArguments, settings: Settings) -> tuple[FoundNoise | None, Settings]:
        return cls(args.turns), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> SearchArguments | None:
        return None if recipe.turns is None else SearchArguments((recipe.turns,))

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if "variation" in settings.tasks:
            raise ValueError("A search turns the noise of pictures by itself; leave the variation out.")

    def change_items(self, items: list[Item], per_prompt: int, recipe: Recipe | None = None) -> list[Item]:
        if any(item.latent is not None for item in items):
            raise ValueError("latents are the noise itself, which no search changes; leave them out.")
        turns = self.turns * len(items) if recipe is not None else self.turns
        pairs = [tuple((turn.seed, turn.strength) for turn in one) for one in turns]
        return [replace(item, turns=one) for item, one in zip(items, pairs, strict=True)]

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        from samplers.editing.interpolation import slerp
        from samplers.noise import normal

        noise = batch.noise.clone()
        for row, item in enumerate(batch.items):
            for seed, strength in item.turns:
                shape, kind = noise.shape[1:], batch.settings.noise_kind
                other = normal([seed], shape, "latents", device=noise.device, kind=kind).to(noise.dtype)
                noise[row : row + 1] = slerp(noise[row : row + 1], other, strength)
        return replace(batch, noise=noise, x=noise * batch.settings.levels[0].sigma)

    def record_one(self, item: Item) -> dict[str, Any]:
        turns = tuple(TurnRecord(seed=seed, strength=strength) for seed, strength in item.turns)
        return {"turns": turns} if turns else {}
