"""The declaration of hires: keywords, what recipes keep, and the work of the second pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from gen.io.record import Record
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of

MOST = 8.0  # times as wide and tall


class HiresRecord(Record):
    """The second pass: how many times as wide and tall, how much of it is made anew and in how many steps, what was enlarged,
    and the side of the windows that the network saw, 0 where it saw all."""

    scale: float = Field(gt=1, le=MOST)
    strength: float = Field(gt=0, le=1)
    steps: int = Field(ge=1, le=1000)
    upscaler: Literal["picture", "latent"] = "picture"
    window: int = Field(0, ge=0, le=16_384)


@dataclass(frozen=True)
class HiresKeywords:
    """Keywords of a call.

    hires: how many times as wide and tall the picture becomes, 1 to 8.
    hires_strength: how much of the enlarged picture is made anew, 0 to 1; if None 0.5, and 0.3 in windows.
    hires_steps: steps of the second pass; those of the first if None.
    hires_upscaler: what is enlarged, "picture" (Lanczos) or "latent" (bilinear); "picture" if None.
    hires_window: pixels that the network sees at once in the second pass, 0 for all; if None the model's own size, or all for
        U-Nets, which take any size.
    """

    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_upscaler: str | None = None
    hires_window: int | None = None


def _work(recipe: Any) -> Work:
    record = recipe.hires
    if record is None:
        return Work()
    second = float(recipe.height * recipe.width)
    if record.window:  # windows that lie half over one another
        second = 1.0
        for side in (recipe.height, recipe.width):
            second *= (2 * side / record.window + 1) * record.window
    height, width = recipe.made_at or (recipe.height, recipe.width)
    return Work(pixels=height * width + second * record.steps / recipe.num_inference_steps)


OPTIONS = TaskOptions(
    HiresKeywords, names_of(HiresKeywords), {"hires": RecipeField(HiresRecord | None, None, place=9)}, work=_work
)
