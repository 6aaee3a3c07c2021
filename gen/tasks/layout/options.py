"""The declaration of layouts: the keyword, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from gen.io.record import Name, Record, Text
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


class RegionRecord(Record):
    """A region of a layout: box (left, top, width, height) in pixels, or a mask of latents as compressed bytes in base64."""

    prompt: Text
    negative_prompt: Text | None = None
    box: tuple[float, float, float, float] | None = None
    mask: Annotated[str, Field(max_length=100_000)] | None = None
    soft: float = Field(0.0, ge=0, le=1024)
    weight: float = Field(1.0, gt=0, le=1e6)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    adapters: dict[Name, float] | None = None
    opacity: float | None = Field(None, gt=0, le=1)


class LayoutRecord(Record):
    """Prompts by region.

    background: the prompt of the rest.
    bootstrap: a log-SNR.
    window: pixels.
    attention: regions are parts of attention to text; None for no, so that recipes without are as they were.
    layered: they are layers upon one another, the lowest first, with opacities; until: a log-SNR, from which they are drawn on
        together.
    start: a log-SNR, from which regions act.
    """

    background: Text | None = None
    regions: tuple[RegionRecord, ...] = Field(min_length=1, max_length=64)
    bootstrap: float | None = None
    window: int | None = Field(None, ge=1, le=16_384)
    at_once: int | None = Field(None, ge=1, le=64)
    attention: bool | None = None
    layered: Literal[True] | None = None
    until: float | None = Field(None, ge=-20, le=20)
    start: float | None = Field(None, ge=-20, le=20)


@dataclass(frozen=True)
class LayoutKeywords:
    """The keyword of a call. layout: a `gen.tasks.layout.spec.LayoutSpec` or its plain values, or a record."""

    layout: Any = None


def _work(recipe: Any) -> Work:
    if recipe.layout is None:
        return Work()
    count = len(recipe.layout.regions)
    return Work(beside=count) if recipe.layout.layered else Work(branches=count)


OPTIONS = TaskOptions(
    LayoutKeywords,
    names_of(LayoutKeywords),
    {"layout": RecipeField(LayoutRecord | None, None, place=4)},
    {"layout": "gen.tasks.layout.task"},
    _work,
)
