"""The declaration of control: keywords, and what recipes keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


class ControlRecord(Record):
    """A picture that was followed: sha256 of its bytes, brought to size, and of the ControlNet's weights; how strongly, and at
    which log-SNR; for a union of ControlNets, which of them."""

    image: Digest
    network: Digest
    weight: float = Field(default=1.0, ge=-100, le=100)
    interval: tuple[float, float] | None = None
    mode: int | None = Field(default=None, ge=0, le=100)


@dataclass(frozen=True)
class ControlKeywords:
    """Keywords of a call; several are lists of one length, or one value for all.

    control: pictures to follow (file, PIL, array or tensor); or name -> picture, for the controls of the default model.
    controlnet: folders of ControlNets, or names of the default model's: edges, segments.
    control_weight: how strongly; 1 if None.
    control_range: (lowest, highest) log-SNR where it acts; everywhere if None.
    control_mode: which control of a union it is.
    """

    control: Any = None
    controlnet: Any = None
    control_weight: float | Sequence[float] | None = None
    control_range: tuple[float, float] | Sequence[tuple[float, float]] | None = None
    control_mode: int | Sequence[int] | None = None


def _work(recipe: Any) -> Work:
    return Work(beside=len(recipe.control))


OPTIONS = TaskOptions(
    ControlKeywords, names_of(ControlKeywords), {"control": RecipeField(tuple[ControlRecord, ...], (), place=2)}, work=_work
)
