"""The declaration of joint pictures: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from gen.io.record import Digest, Name, Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of

SHOWN = ("picture", "map", "both")


class JointRecord(Record):
    """A picture and a map drawn together: sha256 of the adapter's weights, the kind of map; which of the two was given, sha256
    of its bytes, brought to size, and how much of it could change; the scale of guidance of the join; what is shown."""

    adapter: Digest
    kind: Name
    given: Literal["picture", "map"] | None = None
    image: Digest | None = None
    strength: float = Field(default=0.0, ge=0, le=1)
    scale: float = Field(default=1.0, ge=-100, le=100)
    shown: Literal["picture", "map", "both"] = "both"


@dataclass(frozen=True)
class JointKeywords:
    """Keywords of a call.

    joint: the kind of map that is drawn with the picture: "segments" for the default model.
    joint_map: a map (file, PIL, array or tensor), of which the picture is drawn; or any picture, of which a map is made.
    joint_picture: a picture, of which the map is drawn.
    joint_strength: how much of the given one may change, 0 to 1; 0 if None. Above 0 it is only a coarse wish.
    joint_scale: guidance of the join, 1 if None, which is none; more makes the two agree more, at twice the work.
    joint_shown: "picture", "map", or "both" side by side; if None, what was not given, or both.
    joint_adapter: the folder of an adapter; the default model's if None.
    """

    joint: str | None = None
    joint_map: Any = None
    joint_picture: Any = None
    joint_strength: float | None = None
    joint_scale: float | None = None
    joint_shown: str | None = None
    joint_adapter: Any = None


def _work(recipe: Any) -> Work:
    if recipe.joint is None:
        return Work()
    return Work(beside=1, repeats=1.0 if recipe.joint.scale == 1 else 2.0)


OPTIONS = TaskOptions(
    JointKeywords,
    names_of(JointKeywords),
    {"joint": RecipeField(JointRecord | None, None, place=15)},
    methods={"estimate": "gen.tasks.joint.task"},
    work=_work,
)
