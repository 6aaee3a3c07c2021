"""The declaration of restorations: arguments, and what recipes keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Name, Option, Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work


class RestoreRecord(Record):
    """What a restoration began with: sha256 of the picture's bytes and the mask's, brought to size, and how it was measured."""

    task: Name
    image: Digest
    mask: Digest | None = None
    options: dict[Name, Option] = Field({})


@dataclass(frozen=True)
class RestoreArguments:
    """What `Generator.restore` hands on.

    task: inpaint, superres, colorize or deblur.
    image, mask: pictures, as in a call.
    options: of the task, by name.
    """

    task: str
    image: Any
    mask: Any = None
    options: Mapping[str, Any] | None = None


def _work(recipe: Any) -> Work:
    return Work() if recipe.restore is None else Work(options=(recipe.restore.options,))


OPTIONS = TaskOptions(
    RestoreArguments,
    fields={"restore": RecipeField(RestoreRecord | None, None, place=3)},
    methods={"restore": "gen.tasks.restore.task"},
    work=_work,
)
