"""How much a job may ask for, counted by what its run would really do: of all tasks, windows and steps, before it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gen.models.model import Model
from gen.pipeline.types import Item, Settings
from gen.pipeline.work import asked_work
from gen.serve.jobs import ServeError

STEPS = 20  # of the picture that work is counted in, each with and without a prompt


class TooMuchWork(ServeError):
    """A job would take longer, or make a larger picture, than the server allows."""


@dataclass(frozen=True)
class WorkLimit:
    """Of one job.

    pixels: of a finished picture.
    pictures: its work, in pictures of the model's own size in STEPS guided steps.
    """

    pixels: int
    pictures: float

    def check(self, model: Model, items: Sequence[Item], settings: Settings, count: int) -> None:
        """TooMuchWork beyond these. count: pictures of the job, of which `items` are one run."""
        height, width = settings.shown or (settings.height, settings.width)
        if height * width > self.pixels:
            raise TooMuchWork(f"{width} x {height} pixels are asked for, and {self.pixels} are the most here; ask for fewer.")
        own, steps = model.config.sample_size, 2 * STEPS
        asked = asked_work(items, settings) * 1e6 / (own * own * steps) * count / len(items)
        if asked > self.pictures:
            raise TooMuchWork(
                f"The request asks for the work of {asked:,.0f} pictures of {own} x {own} in {STEPS} steps, and "
                f"{self.pictures:,.0f} are the most here; ask for fewer or smaller pictures, or fewer steps."
            )
