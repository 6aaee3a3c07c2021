"""The declaration of canvases: arguments, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from gen.io.record import Extent, Name, Record, Side, Text
from gen.tasks.declaration import Frame, RecipeField, TaskOptions, Work


class CanvasRecord(Record):
    """A canvas of windows, in pixels, height before width.

    circular: vertically, horizontally.
    batch: rows per network call, at most.
    shift_from: the log-SNR from which windows move at every step.
    prompts: several, spread along the width.
    sync: the strength of SyncDiffusion, sync_distance "" for the maker's own function.
    recurrence: passes of every step.
    extend: left, top, right, bottom of the picture that was painted around.
    """

    kind: Literal["panorama", "outpaint", "upscale"]
    window: tuple[Side, Side]
    stride: tuple[Side, Side]
    weights: Name = "linear"
    circular: tuple[bool, bool] = (False, False)
    batch: int = Field(8, ge=1, le=1024)
    prompts: tuple[Text, ...] = Field((), max_length=100)
    sync: float = Field(0.0, ge=0, le=1e6)
    sync_distance: Name = "latent"
    recurrence: int = Field(1, ge=1, le=100)
    extend: tuple[Extent, Extent, Extent, Extent] | None = None
    shift_from: float | None = Field(None, ge=-20, le=20)

    @model_validator(mode="after")
    def _says_where(self) -> CanvasRecord:
        if (self.kind == "outpaint") != (self.extend is not None):
            raise ValueError("extend belongs to outpaint, and only to it")
        return self


@dataclass(frozen=True)
class CanvasArguments:
    """What `Generator.panorama`, `outpaint` and `upscale` hand on.

    record: the canvas, as recipes hold it.
    runtime: what no recipe holds (`gen.tasks.canvas.task.RuntimeObjects`).
    shown: height and width that the picture is cut to, None for all of it.
    """

    record: CanvasRecord
    runtime: Any = None
    shown: tuple[int, int] | None = None

    @property
    def frame(self) -> Frame:
        """What the network sees at once."""
        return Frame(self.record.window, self.shown)


def _work(recipe: Any) -> Work:
    canvas = recipe.canvas
    if canvas is None:
        return Work()
    windows = 1.0
    for length, stride in zip(recipe.made_at or (recipe.height, recipe.width), canvas.stride, strict=True):
        windows *= -(-length // stride) + 1
    return Work(repeats=float(canvas.recurrence), pixels=windows * canvas.window[0] * canvas.window[1])


OPTIONS = TaskOptions(
    CanvasArguments,
    fields={"canvas": RecipeField(CanvasRecord | None, None, place=6)},
    methods=dict.fromkeys(("panorama", "outpaint", "upscale"), "gen.tasks.canvas.calls"),
    work=_work,
)
