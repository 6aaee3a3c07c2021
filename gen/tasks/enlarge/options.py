"""The declaration of enlargements: arguments, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work


class EnlargementRecord(Record):
    """What was enlarged: sha256 of the picture's bytes; how many times; and the level of the noise on it.

    passes: of the network, one after another. seed: of those before the last.
    """

    image: Digest
    scale: float = Field(ge=1, le=16)
    noise: float = Field(ge=0, le=1)
    passes: int = Field(default=1, ge=1, le=4)
    seed: int | None = Field(default=None, ge=0)

    @property
    def mask(self) -> None:
        """There is none, which an edit may have."""
        return None


@dataclass(frozen=True)
class EnlargeArguments:
    """What `Generator.upscale` hands on.

    record: as recipes hold it.
    picture: (1, 3, h, w) in [0, 1], what the last pass enlarges.
    size: height and width of what is shown.
    """

    record: EnlargementRecord
    picture: Any
    size: tuple[int, int]


def _work(recipe: Any) -> Work:
    record = recipe.enlargement
    return Work(repeats=1.0 if record is None or record.passes == 1 else 4 / 3)  # earlier passes: a quarter at most of the next


OPTIONS = TaskOptions(
    EnlargeArguments, fields={"enlargement": RecipeField(EnlargementRecord | None, None, place=13)}, work=_work
)
