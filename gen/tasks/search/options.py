"""The declaration of searches: arguments, and what recipes keep of the noise that was found."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from gen.io.record import Record
from gen.tasks.declaration import RecipeField, TaskOptions


class TurnRecord(Record):
    """A seed that the noise was turned towards, and by which part of the angle."""

    seed: int = Field(ge=0, lt=1 << 63)
    strength: float = Field(gt=0, le=1)


@dataclass(frozen=True)
class SearchArguments:
    """What `Generator.search` hands on. turns: of each picture, one after another."""

    turns: tuple[tuple[TurnRecord, ...], ...]


OPTIONS = TaskOptions(
    SearchArguments,
    fields={
        "turns": RecipeField(
            tuple[TurnRecord, ...] | None,
            None,
            place=2,
            after="seed",
            description="further seeds that the noise was turned towards, as a search found it",
        )
    },
    methods={"search": "gen.tasks.search.search"},
)
