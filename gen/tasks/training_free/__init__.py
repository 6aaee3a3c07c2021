"""Training-free changes of a run beside guidance, as a call asks for them: the closed table, and what a call may say.

    generator("a cat", negtome="cat.png")                        away from what a picture looks like
    generator("a cat", reference="cat.png")                      towards it, through self-attention
    generator("a cat and a dog", concepts=["cat", "dog"])        words that must not mix
    generator("a cat", aesthetic="a watercolour painting")       the prompt's reading moved towards another text's
    generator("a cat", greedy=score)                             of several clean images the best, at every step

Each has options of its own, `negtome_options` and so on. A recipe keeps names, numbers, texts and the sha256 of pictures.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gen.pipeline.recipe import Recipe, TweakRecord
from gen.pipeline.types import Item, ReadPrompts, SamplingBatch, Settings, Task
from gen.tasks.tweak_options import TweakOptions
from samplers.denoiser import Condition

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Denoiser
    from samplers.noise import NoiseSource
    from samplers.sample import Solver


# name -> (module, class), in the order in which they go around the network
TWEAKS: dict[str, tuple[str, str]] = {
    "reference": ("gen.tasks.training_free.pictures", "Reference"),
    "negtome": ("gen.tasks.training_free.pictures", "NegTome"),
    "aesthetic": ("gen.tasks.training_free.aesthetic", "Aesthetic"),
    "concepts": ("gen.tasks.training_free.concepts", "Concepts"),
    "greedy": ("gen.tasks.training_free.greedy", "GreedyChoice"),
}


class Tweak:
    """Base of the rows: each changes what it has to."""

    record: TweakRecord

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """What took part and is in no recipe."""
        return ()

    @classmethod
    def make(cls, model: Model, given: Mapping[str, Any], height: int, width: int) -> Tweak:
        """From the keywords of a call that begin with its name; ValueError says what cannot be used."""
        raise NotImplementedError

    @classmethod
    def again(cls, record: TweakRecord, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords for a replay: those of the record, and what the caller gave where it holds no more than a digest."""
        raise NotImplementedError

    def read(self, model: Model, prompts: Sequence[str], condition: Condition, adapters: Mapping[str, float]) -> Condition:
        """The prompts' condition, changed."""
        return condition

    def inside(self, model: Model, denoiser: Denoiser, seeds: Sequence[int], prompts: Sequence[str], condition: Condition):
        """Around the network and its caches."""
        return denoiser

    def outside(self, model: Model, denoiser: Denoiser, noise: NoiseSource, prompts: Sequence[str]) -> Denoiser:
        """Around all guidance."""
        return denoiser

    def recorded(self, items: Sequence[Item]) -> TweakRecord:
        """What recipes of this batch say of it."""
        return self.record


@dataclass(frozen=True)
class Tweaks(Task):
    """Those of one call, by name."""

    parts: Mapping[str, Tweak]

    @classmethod
    def from_call(cls, model: Model, args: Mapping[str, Any], settings: Settings) -> tuple[Tweaks | None, Settings]:
        named = said(args)
        return (make_tweaks(model, named, settings.height, settings.width) if named else None), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in given.items() if name in TweakOptions.__annotations__}
        return replayed_tweaks(recipe.tweaks, said(own))

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if recipe is None:
            return
        for name, part in self.parts.items():
            record = recipe.tweaks[name]
            if (part.record.digests, part.record.masks) != (record.digests, record.masks):
                raise ValueError(f"This {name} is not the one that the picture was made with: its sha256 differs.")

    def replay_items(self, recipe: Recipe, items: list[Item]) -> list[Item]:
        """With the batch's first picture, where others depend on it."""
        first = next((record.first for record in recipe.tweaks.values() if record.first is not None), None)
        if first is None:
            return items
        return [Item(first.prompt, first.negative_prompt, first.class_label, first.seed), *items[1:]]

    def read_prompts(self, model: Model, prompts: list[str], adapters: Mapping[str, float], read: ReadPrompts) -> Condition:
        condition = read(prompts)
        for part in self.parts.values():
            condition = part.read(model, prompts, condition, adapters)
        return condition

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        for part in self.parts.values():
            denoiser = part.inside(batch.model, denoiser, batch.seeds, batch.prompts, batch.condition)
        return denoiser

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        for part in self.parts.values():
            denoiser = part.outside(batch.model, denoiser, batch.seeded_noise(), batch.prompts)
        return denoiser, solver

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"tweaks": {name: part.recorded(items) for name, part in self.parts.items()}}

    @property
    def unrecorded(self) -> tuple[str, ...]:
        return tuple(what for part in self.parts.values() for what in part.unrecorded)


def said(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say something."""
    return {
        name: value
        for name, value in given.items()
        if value is not None and not (isinstance(value, list | tuple | dict) and not value)  # an array has no truth value
    }


def make_tweaks(model: Model, given: Mapping[str, Any], height: int, width: int) -> Tweaks:
    """ValueError for options without the thing that they are of, and for what cannot go together."""
    for name in given:
        base = next(row for row in TWEAKS if name.startswith(row))
        if base not in given:
            raise ValueError(f"{name} was given without {base}; give {base} too.")
    if "negtome" in given and "reference" in given:
        raise ValueError("negtome and reference both put pictures beside the batch; give one of them.")
    parts = {}
    for name, (module, row) in TWEAKS.items():
        if name in given:
            own = {key.removeprefix(name).lstrip("_"): value for key, value in given.items() if key.startswith(name)}
            parts[name] = getattr(importlib.import_module(module), row).make(model, own, height, width)
    return Tweaks(parts)


def replayed_tweaks(records: Mapping[str, TweakRecord], given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a recipe's; `given` are the pictures, files and functions that it does not hold. ValueError where one is
    missing, or not wanted."""
    keywords: dict[str, Any] = {}
    for name in given:
        base = next(row for row in TWEAKS if name.startswith(row))
        if base not in records:
            raise ValueError(f"The picture was made without {base}; leave {name} out.")
    for name, record in records.items():
        if name not in TWEAKS:
            raise ValueError(f"The recipe has a tweak {name!r:.40}, which this fewstep does not know; use a newer one.")
        module, row = TWEAKS[name]
        own = {key.removeprefix(name).lstrip("_"): value for key, value in given.items() if key.startswith(name)}
        again = getattr(importlib.import_module(module), row).again(record, own)
        keywords |= {
            f"{name}_{key}" if key else name: value for key, value in {**again, "options": dict(record.options)}.items()
        }
    return keywords


def wanted(name: str, again: str) -> ValueError:
    return ValueError(f"The picture was made with {name}, which its recipe does not hold; give it again ({again}).")


def several(value: Any) -> list[Any]:
    """One or a list, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]
