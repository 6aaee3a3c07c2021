"""The declaration of transparent pictures: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.io.record import Digest, Record
from gen.tasks.declaration import RecipeField, TaskOptions, names_of


class TransparentRecord(Record):
    """sha256 of the weights of the network that found the opacity."""

    network: Digest


@dataclass(frozen=True)
class TransparentKeywords:
    """Keywords of a call.

    transparent: give the picture alpha, and leave out what is behind the thing.
    transparency: folder of the network that finds it; the one that is shipped if None.
    """

    transparent: bool | None = None
    transparency: Any = None


OPTIONS = TaskOptions(
    TransparentKeywords, names_of(TransparentKeywords), {"transparent": RecipeField(TransparentRecord | None, None, place=12)}
)
