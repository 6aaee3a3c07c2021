"""The declaration of translations: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Name, Record
from gen.tasks.declaration import RecipeField, TaskOptions, names_of


class TranslationRecord(Record):
    """What was translated: sha256 of the picture's bytes, brought to size, and of the translator's weights; in which direction,
    and how strongly."""

    image: Digest
    translator: Digest
    direction: Name
    strength: float = Field(default=1.0, ge=0, le=1)


@dataclass(frozen=True)
class TranslateKeywords:
    """Keywords of a call.

    translate: the picture to translate (file, PIL, array or tensor).
    translator: the folder of a translator, or "default" (also if None), which is for the model "fast".
    translate_direction: what it makes, by the translator's own names; its first if None.
    translate_strength: how much of the picture is kept, 0 to 1; 1 if None. The rest comes from noise.
    """

    translate: Any = None
    translator: Any = None
    translate_direction: str | None = None
    translate_strength: float | None = None


OPTIONS = TaskOptions(
    TranslateKeywords,
    names_of(TranslateKeywords),
    {"translation": RecipeField(TranslationRecord | None, None, place=11)},
    methods={"translate": "gen.tasks.translate.task"},
    steps=1,
)
