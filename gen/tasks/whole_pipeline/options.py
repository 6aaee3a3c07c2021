"""The declaration of pipelines that run as a whole: a keyword, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Name, Option, Record, Side
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


class PipelineRecord(Record):
    """A diffusers pipeline that ran as a whole: its class, and what its call was given beside the fields of a recipe.

    options: by the pipeline's names.
    pictures: name -> sha256 of each picture.
    height, width: in pixels, as they were asked for.
    """

    name: Name
    options: dict[Name, Option] = Field({})
    pictures: dict[Name, tuple[Digest, ...]] = Field({})
    height: Side | None = None
    width: Side | None = None


@dataclass(frozen=True)
class PipelineKeywords:
    """Keywords of a call. pipeline_options: what the pipeline's own call is given, by its names; pictures may be files."""

    pipeline_options: Any = None


def _work(recipe: Any) -> Work:
    return Work() if recipe.pipeline is None else Work(options=(recipe.pipeline.options,))


OPTIONS = TaskOptions(
    PipelineKeywords, names_of(PipelineKeywords), {"pipeline": RecipeField(PipelineRecord | None, None, place=8)}, work=_work
)
