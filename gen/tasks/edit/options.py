"""The declaration of edits: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Record
from gen.tasks.declaration import RecipeField, TaskOptions, names_of


class Start(Record):
    """What an edit began with: sha256 of the image's bytes and the mask's, brought to the picture's size, and the strength;
    none where an editing network read the image and the run began with noise. others: of the images that it read beside."""

    image: Digest
    others: tuple[Digest, ...] | None = Field(None, max_length=16)
    mask: Digest | None = None
    strength: float | None = Field(None, ge=0, le=1)


@dataclass(frozen=True)
class EditKeywords:
    """Keywords of a call.

    image: the picture to start from (file, PIL, array or tensor); several in a list, the first of which is edited, for networks
        that read more.
    mask: likewise; where it is 0 (black) the image stays as it is, to the pixel.
    strength: how much of the image is replaced, 0 to 1; 0.8 if None, 1 with a mask.
    """

    image: Any = None
    mask: Any = None
    strength: float | None = None


OPTIONS = TaskOptions(EditKeywords, names_of(EditKeywords), {"start": RecipeField(Start | None, None, place=1)})
