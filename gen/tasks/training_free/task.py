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

from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Item, ReadPrompts, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.declaration import names_of
from gen.tasks.training_free.options import TrainingFreeOptions, TrainingFreeRecord
from samplers.denoiser import Condition

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Denoiser
    from samplers.noise import NoiseSource
    from samplers.sample import Solver


# name -> (module, class), in the order in which they go around the network
TRAINING_FREE: dict[str, tuple[str, str]] = {
    "reference": ("gen.tasks.training_free.pictures", "Reference"),
    "negtome": ("gen.tasks.training_free.pictures", "NegTome"),
    "aesthetic": ("gen.tasks.training_free.aesthetic", "Aesthetic"),
    "concepts": ("gen.tasks.training_free.concepts", "Concepts"),
    "greedy": ("gen.tasks.training_free.greedy", "GreedyChoice"),
}


class TrainingFreeMethod:
    """One change of a run, such as negtome; this base changes nothing, and a method overrides what it needs.

    record: what recipes say of it.
    """

    record: TrainingFreeRecord

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """What took part and is in no recipe."""
        return ()

    @classmethod
    def make(cls, model: Model, keywords: Mapping[str, Any], height: int, width: int) -> TrainingFreeMethod:
        """The method as a call asks for it; ValueError says what cannot be used.

        model: the model of the call.
        keywords: those of the call that begin with the method's name, without it: "" is the method's own keyword, "options" its
            options.
        height, width: of the picture (pixels).
        """
        raise NotImplementedError

    @classmethod
    def keywords_from_record(cls, record: TrainingFreeRecord, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords of a replay, named as in `make`: those of the record, and of the caller's what the record holds only a
        digest of."""
        raise NotImplementedError

    def map_condition(
        self, model: Model, prompts: Sequence[str], condition: Condition, adapters: Mapping[str, float]
    ) -> Condition:
        """The prompts' condition, changed.

        prompts: B texts.
        condition: what the text encoder made of them (B, ...).
        adapters: name -> weight of the adapters that act.
        """
        return condition

    def wrap_network(
        self, model: Model, denoiser: Denoiser, seeds: Sequence[int], prompts: Sequence[str], condition: Condition
    ) -> Denoiser:
        """A denoiser around the network and its caches, inside of guidance."""
        return denoiser

    def wrap_guided(self, model: Model, denoiser: Denoiser, noise: NoiseSource, prompts: Sequence[str]) -> Denoiser:
        """A denoiser around all guidance. noise: of stochastic methods, by the pictures' seeds."""
        return denoiser

    def record_of(self, items: Sequence[Item]) -> TrainingFreeRecord:
        """What the recipes of this batch say of it."""
        return self.record


@dataclass(frozen=True)
class TrainingFree(Task):
    """The training-free methods of one call.

    methods: name -> method, in the order in which they go around the network.
    """

    methods: Mapping[str, TrainingFreeMethod]

    @classmethod
    def from_call(cls, model: Model, args: TrainingFreeOptions, settings: Settings) -> tuple[TrainingFree | None, Settings]:
        named = nonempty(vars(args))
        return (make_training_free(model, named, settings.height, settings.width) if named else None), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> TrainingFreeOptions | None:
        training_free = {name: value for name, value in keywords.items() if name in names_of(TrainingFreeOptions)}
        replayed = keywords_from_records(recipe.tweaks, nonempty(training_free))
        return TrainingFreeOptions(**replayed) if replayed else None

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if recipe is None:
            return
        for name, method in self.methods.items():
            record = recipe.tweaks[name]
            if (method.record.digests, method.record.masks) != (record.digests, record.masks):
                raise ValueError(f"This {name} is not the one that the picture was made with: its sha256 differs.")

    @property
    def traits(self) -> TaskTraits:
        unrecorded = tuple(what for method in self.methods.values() for what in method.unrecorded)
        return TaskTraits(one_prompt="concepts" in self.methods, unrecorded=unrecorded)

    def change_items(self, items: list[Item], per_prompt: int, recipe: Recipe | None = None) -> list[Item]:
        """In a replay with the batch's first picture, where others depend on it."""
        records = {} if recipe is None else recipe.tweaks
        first = next((record.first for record in records.values() if record.first is not None), None)
        if first is None:
            return items
        return [Item(first.prompt, first.negative_prompt, first.class_label, first.seed), *items[1:]]

    def read_prompts(self, model: Model, prompts: list[str], adapters: Mapping[str, float], read: ReadPrompts) -> Condition:
        condition = read(prompts)
        for method in self.methods.values():
            condition = method.map_condition(model, prompts, condition, adapters)
        return condition

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        for method in self.methods.values():
            denoiser = method.wrap_network(batch.model, denoiser, batch.seeds, batch.prompts, batch.condition)
        return denoiser

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        for method in self.methods.values():
            denoiser = method.wrap_guided(batch.model, denoiser, batch.seeded_noise(), batch.prompts)
        return denoiser, solver

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"tweaks": {name: method.record_of(items) for name, method in self.methods.items()}}


def nonempty(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that are neither None nor empty lists, tuples or dicts."""
    return {
        name: value
        for name, value in keywords.items()
        if value is not None and not (isinstance(value, list | tuple | dict) and not value)  # an array has no truth value
    }


def _method_of(keyword: str) -> str:
    """The name of the method that a keyword such as negtome_mask belongs to."""
    return next(name for name in TRAINING_FREE if keyword.startswith(name))


def _keywords_of(method: str, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a method, without its name: "" is its own."""
    return {name.removeprefix(method).lstrip("_"): value for name, value in keywords.items() if name.startswith(method)}


def _method_class(name: str) -> type[TrainingFreeMethod]:
    module, class_name = TRAINING_FREE[name]
    return getattr(importlib.import_module(module), class_name)


def make_training_free(model: Model, keywords: Mapping[str, Any], height: int, width: int) -> TrainingFree:
    """The methods that a call's keywords ask for. ValueError for options without the method that they are of, and for methods
    that cannot go together."""
    for keyword in keywords:
        if (method := _method_of(keyword)) not in keywords:
            raise ValueError(f"{keyword} was given without {method}; give {method} too.")
    if "negtome" in keywords and "reference" in keywords:
        raise ValueError("negtome and reference both put pictures beside the batch; give one of them.")
    return TrainingFree(
        {
            name: _method_class(name).make(model, _keywords_of(name, keywords), height, width)
            for name in TRAINING_FREE
            if name in keywords
        }
    )


def keywords_from_records(records: Mapping[str, TrainingFreeRecord], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a replay.

    records: name -> what the recipe says of the method.
    keywords: of the caller: the pictures, files and functions that no recipe holds. ValueError where one is missing, or not
        wanted.
    """
    replayed: dict[str, Any] = {}
    for keyword in keywords:
        if (method := _method_of(keyword)) not in records:
            raise ValueError(f"The picture was made without {method}; leave {keyword} out.")
    for name, record in records.items():
        if name not in TRAINING_FREE:
            raise ValueError(
                f"The recipe has a training-free change {name!r:.40}, which this fewstep does not know; use a newer one."
            )
        from_record = _method_class(name).keywords_from_record(record, _keywords_of(name, keywords))
        for key, value in {**from_record, "options": dict(record.options)}.items():
            replayed[f"{name}_{key}" if key else name] = value
    return replayed


def not_in_recipe(name: str, keyword: str) -> ValueError:
    """The error for a replay that lacks what its recipe does not hold."""
    return ValueError(f"The picture was made with {name}, which its recipe does not hold; give it again ({keyword}).")


def as_list(value: Any) -> list[Any]:
    """One or a list, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]
