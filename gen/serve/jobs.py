"""What clients ask for: a job is one request, made of pictures that run each by itself."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gen.pipeline.recipe import Recipe
from gen.serve.sent import opened

log = logging.getLogger("fewstep.serve")
QUEUED, LOADING, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED = (
    "queued", "loading", "running", "done", "failed", "cancelled", "interrupted"
)  # fmt: skip
OVER = (DONE, FAILED, CANCELLED, INTERRUPTED)


class ServeError(ValueError):
    """A request that is not met; the message says why. status: of the HTTP answer. retry_after: seconds."""

    status = 400
    retry_after: int | None = None


class QueueFull(ServeError):
    """Too many pictures wait."""

    status = 429

    def __init__(self, waiting: int, limit: int, retry_after: int):
        super().__init__(f"{waiting} pictures wait and {limit} may; ask again in {retry_after} seconds.")
        self.retry_after = retry_after


class TooMuchSent(ServeError):
    """The pictures that were sent with jobs that are not over take too much memory."""

    status = 429
    retry_after = 5

    def __init__(self, held: int, limit: int):
        super().__init__(
            f"Pictures sent with jobs that are not done take {held / 2**20:.0f} MiB, and {limit / 2**20:.0f} MiB are the most "
            f"here; ask again in {self.retry_after} seconds."
        )


class DeadlineExceeded(ServeError):
    """A job was not done in time."""

    status = 504

    def __init__(self, message: str = "The job was not done by its deadline; ask for less, or allow more time.") -> None:
        super().__init__(message)


class NoSuchModel(ServeError):
    """A name of none of the server's models."""

    status = 404


class JobCancelled(ServeError):
    """Nobody waits for a job any more."""

    status = 499


class Unavailable(ServeError):
    """The server stops, or its model cannot be opened."""

    status = 503


@dataclass(frozen=True)
class JobEvent:
    """What a job's listener is told.

    kind: started, step, picture, or the state that it ended in (`OVER`).
    index: which picture. step, steps: done, and of all. preview: a small PIL picture. image, recipe: of a finished one.
    error: why it failed.
    """

    kind: str
    index: int = 0
    step: int = 0
    steps: int = 0
    preview: Any = None
    image: Any = None
    recipe: Recipe | None = None
    error: Exception | None = None


class RunLimit(Protocol):
    """Refuses a run that asks for too much, once all of it is known (`gen.serve.limits`)."""

    def check(self, model: Any, items: Sequence[Any], settings: Any, count: int) -> None: ...


@dataclass(eq=False)
class ServeJob:
    """One request.

    model: its name in the pool.
    client: whom queues are shared out among.
    keywords: of `Generator.__call__`, or of `method`, but for prompts' number: one prompt, and one seed.
    seeds: of its pictures, one for each.
    adapters: name -> weight of those that act on all of it.
    method: "" for a call, else the name of a method of `Generator`.
    together: its pictures know of one another, so that they are one run.
    alone: none of its calls share a forward pass.
    previews: steps between previews, 0 for none.
    deadline: on the engine's clock, by which it is done or fails; None: no matter when.
    limit: how much it may ask for; None: anything.
    listener: called with every `JobEvent`, in the engine's thread; it must return at once.
    """

    model: str
    client: str
    keywords: Mapping[str, Any]
    seeds: Sequence[int]
    adapters: Mapping[str, float] = field(default_factory=dict)
    method: str = ""
    together: bool = False
    alone: bool = False
    previews: int = 0
    deadline: float | None = None
    limit: RunLimit | None = None
    listener: Callable[[JobEvent], None] | None = None
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    state: str = QUEUED
    step: int = 0
    steps: int = 0
    images: dict[int, tuple[Any, Recipe]] = field(default_factory=dict)
    error: Exception | None = None
    preview: Any = None
    interrupt: bool = False
    cancelled: bool = False
    notes: list[str] = field(default_factory=list)
    came: float = field(default_factory=time.monotonic)
    finished: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._opened: Mapping[str, Any] | None = None

    @property
    def count(self) -> int:
        return len(self.seeds)

    def opened_keywords(self) -> Mapping[str, Any]:
        """Its keywords with the pictures that were sent decoded: once, when the first of its own begins, until it is over."""
        if self._opened is None:
            self._opened = opened(self.keywords)
        return self._opened

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def progress(self) -> float:
        """0 to 1."""
        if self.is_over:
            return 1.0
        return min(self.step / (self.steps * self.count), 1.0) if self.steps else 0.0

    def tell(self, event: JobEvent) -> None:
        if self.listener is None:
            return
        try:
            self.listener(event)
        except Exception as error:  # a listener's own failure is none of the engine's
            log.error("A listener of a job failed", exc_info=error)

    def end(self, state: str, error: Exception | None = None) -> None:
        """For good; what is told twice is told once."""
        if not self.is_over:
            self.state, self.error, self.preview, self._opened = state, error, None, None
            self.tell(JobEvent(state, error=error))
            self.finished.set()

    def result(self, timeout: float | None = None) -> list[tuple[Any, Recipe]]:
        """(image, recipe) of its pictures, once it is over; what went wrong is raised."""
        if not self.finished.wait(timeout):
            raise DeadlineExceeded(f"The job was not done within {timeout:g} seconds.")
        if self.error is not None:
            raise self.error
        return [self.images[index] for index in sorted(self.images)]
