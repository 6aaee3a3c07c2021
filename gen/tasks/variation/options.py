"""The declaration of variations: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from gen.io.record import Record
from gen.tasks.declaration import RecipeField, TaskOptions, names_of


class VariationRecord(Record):
    """The seed that the noise was turned towards, and how far: 0 is the picture's own seed, 1 the other."""

    seed: int = Field(ge=0, lt=1 << 63)
    strength: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class VariationKeywords:
    """Keywords of a call.

    variation_seed: of pictures with the same seed the first has this one, the next variation_seed + 1, ...; random if None.
    variation_strength: 0 to 1; 0.2 if None.
    """

    variation_seed: int | None = None
    variation_strength: float | None = None


OPTIONS = TaskOptions(
    VariationKeywords,
    names_of(VariationKeywords),
    {
        "variation": RecipeField(
            VariationRecord | None, None, place=1, after="seed", description="a second seed, and how much it counts"
        )
    },
)
