"""The declaration of compositions: keywords, and what recipes keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gen.io.record import Digest, Name, Option
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


@dataclass(frozen=True)
class CompositionKeywords:
    """Keywords of a call.

    composition: a name of `samplers.composition`; merged if None.
    composition_options: its options.
    regions: adapter -> mask (white: there it acts).
    """

    composition: str | None = None
    composition_options: Mapping[str, Any] | None = None
    regions: Mapping[str, Any] | None = None


def _work(recipe: Any) -> Work:
    return Work(options=(recipe.composition_options,))


def _leader_keeps_its_weight(recipe: Any) -> dict[str, Any]:
    if recipe.composition != "cached":
        return {}
    return {"composition_options": {"decay": 1.0, **recipe.composition_options}}


OPTIONS = TaskOptions(
    CompositionKeywords,
    names_of(CompositionKeywords),
    {
        "composition": RecipeField(
            Name, "", place=1, after="adapters", description="how several adapters act; merged where it is empty"
        ),
        "composition_options": RecipeField(dict[Name, Option], {}, place=2, after="adapters"),
        "regions": RecipeField(
            dict[Name, Digest], {}, place=3, after="adapters", description="adapter -> sha256 of the mask that it acts in"
        ),
    },
    work=_work,
    upgrades={2: _leader_keeps_its_weight},
)
