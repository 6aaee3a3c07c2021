"""The declaration of outpainting by positional queries: arguments, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.io.record import Digest, Extent, Record
from gen.tasks.declaration import RecipeField, TaskOptions


class AroundRecord(Record):
    """What a picture was painted around: sha256 of its bytes, and the pixels on the left, top, right and bottom."""

    image: Digest
    extend: tuple[Extent, Extent, Extent, Extent]
    mask: None = None


@dataclass(frozen=True)
class AroundArguments:
    """What `Generator.outpaint` hands on. image: the picture; extend: pixels on the left, top, right and bottom."""

    image: Any
    extend: tuple[int, int, int, int]


OPTIONS = TaskOptions(AroundArguments, fields={"around": RecipeField(AroundRecord | None, None, place=14)})
