"""The declaration of guidance by an energy: keywords, and what recipes keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Name, Option, Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


class GuideRecord(Record):
    """Guidance by an energy of the closed table; energy is "" for the maker's own code or models, which no recipe names."""

    energy: Name = ""
    method: Name
    strength: float = Field(ge=0, le=1e6)
    options: dict[Name, Option] = Field({})


@dataclass(frozen=True)
class GuideKeywords:
    """Keywords of a call.

    guide: an energy's name (`gen.tasks.energies`), or a function (pictures (B, 3, H, W) in [0, 1], condition) -> (B,).
    guide_strength: how strongly; the method's usual strength if None.
    guide_method: a name of `samplers.guidance.energy_methods`.
    guide_options: of the method and of the energy.
    """

    guide: Any = None
    guide_strength: float | None = None
    guide_method: str | None = None
    guide_options: Mapping[str, Any] | None = None


def _work(recipe: Any) -> Work:
    return Work() if recipe.guide is None else Work(options=(recipe.guide.options,))


def _colours_matched_in_rgb(recipe: Any) -> dict[str, Any]:
    if recipe.guide is None or recipe.guide.energy != "colour":
        return {}
    return {"guide": recipe.guide.model_copy(update={"options": {"match": "rgb", **recipe.guide.options}})}


OPTIONS = TaskOptions(
    GuideKeywords,
    names_of(GuideKeywords),
    {"guide": RecipeField(GuideRecord | None, None, place=2)},
    work=_work,
    upgrades={1: _colours_matched_in_rgb},
)
