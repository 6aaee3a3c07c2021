"""The declaration of references: keywords, and what recipes keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Name, Option, Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


class ReferencesRecord(Record):
    """Pictures that were resembled: sha256 of their bytes, of masks, of the encoder's weights, and of those of a vision network
    that is none of the model's; how strongly, one number for all pictures or one for each; the log-SNR between which."""

    encoder: Digest
    vision: Digest | None = None
    images: tuple[Digest, ...] = Field((), max_length=64)
    masks: tuple[Digest, ...] = Field((), max_length=64)
    scale: tuple[float, ...] = (1.0,)
    interval: tuple[float, float] | None = None
    fusion: int = Field(0, ge=0, le=100)
    fusion_options: dict[Name, Option] = Field({}, max_length=3)


@dataclass(frozen=True)
class ReferencesKeywords:
    """Keywords of a call.

    references: pictures to resemble (file, PIL, array or tensor), one or a list. The word <ref> of a prompt stands for them.
    references_scale: how strongly, 1 if None; a number, or one for each, which are then read each by itself.
    references_mask: white where a picture counts, one for each.
    references_encoder: the folder of a reference encoder; the default model's if None.
    references_vision: folder or hub id of CLIP's vision network, for an encoder that reads its features.
    references_range: (lowest, highest) log-SNR where they act; everywhere if None.
    references_fusion: moves of fusion sampling before each step, none if None (`samplers.guidance.fusion`). Options: eta 1,
        guidance 3, the scale of guidance of the moves, and scale 0.8, a factor on how strongly references act on them.
    """

    references: Any = None
    references_scale: float | Sequence[float] | None = None
    references_mask: Any = None
    references_encoder: Any = None
    references_vision: Any = None
    references_range: tuple[float, float] | None = None
    references_fusion: int | None = None
    references_fusion_options: Mapping[str, Any] | None = None


def _work(recipe: Any) -> Work:
    return Work() if recipe.references is None else Work(repeats=1.0 + recipe.references.fusion)


OPTIONS = TaskOptions(
    ReferencesKeywords,
    names_of(ReferencesKeywords),
    {"references": RecipeField(ReferencesRecord | None, None, place=11)},
    work=_work,
)
