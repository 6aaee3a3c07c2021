"""The declaration of a refiner: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Record
from gen.tasks.declaration import RecipeField, TaskOptions, names_of


class RefinerRecord(Record):
    """The model that finished the picture: its name, the sha256 of its parts' own, and where on the schedule it began."""

    name: str = Field(max_length=1000)
    weights: Digest
    at: float = Field(gt=0, lt=1)


@dataclass(frozen=True)
class RefinerKeywords:
    """Keywords of a call.

    refiner: a folder, file, hub id or open model that finishes the picture.
    refiner_at: how much of the schedule is done before it begins, above 0 and below 1; 0.8 if None.
    """

    refiner: Any = None
    refiner_at: float | None = None


OPTIONS = TaskOptions(
    RefinerKeywords, names_of(RefinerKeywords), {"refiner": RecipeField(RefinerRecord | None, None, place=10)}
)
