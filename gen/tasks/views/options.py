"""The declaration of views: arguments, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Name, Record, Text
from gen.tasks.declaration import RecipeField, TaskOptions, Work


class ViewsRecord(Record):
    """A picture that is read in several ways: the prompts of its views, beside the picture's own."""

    prompts: tuple[Text, ...] = Field(min_length=1, max_length=8)
    views: tuple[Name, ...] = Field(min_length=1, max_length=8)
    pixels_from: float = Field(ge=-20, le=20)


@dataclass(frozen=True)
class ViewsArguments:
    """What `Generator.ambiguous` hands on. views: (prompts, names, pixels_from), or a record of them."""

    views: Any


def _work(recipe: Any) -> Work:
    return Work(branches=0 if recipe.views is None else len(recipe.views.views))


OPTIONS = TaskOptions(
    ViewsArguments,
    fields={"views": RecipeField(ViewsRecord | None, None, place=7)},
    methods={"ambiguous": "gen.tasks.views.task"},
    work=_work,
)
