"""What the rest of a server sees of an engine: jobs in, events out, from any thread, whoever draws the pictures."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gen.models.prompt_syntax import take_loras
from gen.serve.collector import Passes
from gen.serve.jobs import NoSuchModel, ServeError, ServeJob
from samplers.lookup import nearest

GUESS = 2  # rows of a picture whose first call has not been made: guided, it has one with the prompt and one without
WINDOW = 32  # pictures that the time of one is reckoned from


@dataclass
class EngineNumbers:
    """An engine's state, for metrics: since it was made, and of now. seconds: of the last pictures, from their beginning."""

    pictures: int = 0
    failed: int = 0
    cancelled: int = 0
    rounds: int = 0
    evictions: int = 0
    waiting: int = 0
    running: int = 0
    running_rows: int = 0
    model_bytes: int = 0
    passes: dict[str, Passes] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)


class EngineFront(ABC):
    """The part of an engine that knows no network. All of it may be called from any thread.

    models: names of those that requests may name, the usual one first.
    max_rows: of a forward pass, and of all pictures that run at a time.
    max_queue: pictures that may wait.
    adapters: name -> file of those that requests may name.
    clock: seconds, for deadlines; monotonic.
    """

    def __init__(
        self,
        models: Iterable[str],
        *,
        max_rows: int = 16,
        max_queue: int = 64,
        adapters: Mapping[str, Path] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.models = list(models)
        self.max_rows, self.max_queue, self.clock = max_rows, max_queue, clock
        self.adapters = dict(adapters or {})
        self._closing = False
        self._refused = 0.0

    @abstractmethod
    def start(self) -> None:
        """Work in the background until `close`."""

    @abstractmethod
    def submit(self, job: ServeJob) -> ServeJob:
        """Queue a job. QueueFull where too many pictures wait, ServeError for a model or adapter that is none of the server's,
        Unavailable once the engine closes."""

    @abstractmethod
    def cancel(self, job: ServeJob) -> None:
        """Drop a job; its rows are gone before the next forward pass."""

    @abstractmethod
    def interrupt(self, job: ServeJob) -> None:
        """End a job after the step that it is at; its pictures are shown as they are, those that wait are not made."""

    @abstractmethod
    def jobs(self) -> list[ServeJob]:
        """Those that are not over, the ones at work first."""

    @abstractmethod
    def close(self, timeout: float = 0.0) -> None:
        """Take nothing more, finish what runs within `timeout` seconds, and drop the rest."""

    @property
    @abstractmethod
    def open_models(self) -> list[str]:
        """Names of the models that are open."""

    @abstractmethod
    def numbers(self) -> EngineNumbers:
        """Its state."""

    # ---- what is checked before a job is taken ----

    def check_model(self, name: str) -> str:
        """The name. NoSuchModel for one that is none of the server's."""
        if name not in self.models:
            near = nearest(name[:200], self.models)
            hint = f" Did you mean {near!r}?" if near else ""
            raise NoSuchModel(f"There is no model {name[:200]!r} here; there are {', '.join(self.models)}.{hint}")
        return name

    def adapter_files(self, job: ServeJob) -> dict[str, Path]:
        """name -> file of the adapters that a job names, also in its prompts. ServeError for one that is not the server's."""
        prompt = str(job.keywords.get("prompt") or "")
        named = {} if job.keywords.get("prompt_syntax") == "weights" else take_loras(prompt)[1]
        names = [*job.adapters, *named]
        for name in names:
            if name not in self.adapters:
                near = nearest(str(name)[:200], self.adapters)
                hint = f" Did you mean {near!r}?" if near else ""
                known = ", ".join(sorted(self.adapters)[:20]) or "none"
                raise ServeError(f"There is no LoRA {str(name)[:200]!r} here; there are {known}.{hint}")
        return {name: self.adapters[name] for name in names}

    def retry_after(self, waiting: int, seconds: Iterable[float]) -> int:
        """Seconds in which the queue will have moved, as it moved lately; 1 to 120. seconds: that the last pictures took."""
        lately = sorted(seconds)
        typical = lately[len(lately) // 2] if lately else 2.0
        at_once = max(self.max_rows // GUESS, 1)
        return min(max(math.ceil(typical * waiting / at_once / 2), 1), 120)

    # ---- how it ends ----

    @property
    def is_closing(self) -> bool:
        return self._closing

    def refuse(self) -> None:
        """Take no more jobs. For a signal's handler too, so it waits for no lock."""
        if not self._closing:
            self._closing, self._refused = True, time.monotonic()

    def rest_of(self, grace: float) -> float:
        """What is left of the seconds after `refuse`."""
        return max(grace - (time.monotonic() - self._refused if self._closing else 0.0), 0.0)
