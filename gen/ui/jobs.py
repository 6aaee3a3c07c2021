"""A queue of calls with one thread that works on them, and what a page shows of it.

Nothing here knows a page or a model: what a job does is a function `(call, watch) -> None`, which reports to a `JobWatch`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from gen.calls.errors import sentence
from gen.ui.gallery import PNG, FileKind

KEPT = 200  # finished jobs that are remembered


class JobState(Enum):
    """Where a job is on its way."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


OVER = (JobState.DONE, JobState.FAILED, JobState.STOPPED)


@dataclass
class JobProgress:
    """How far a job is.

    stage: what it does, in a word or two, before and after the steps.
    step, steps: of the pictures under way.
    share: 0 to 1 of all its work.
    left: seconds until the end; None before that can be said.
    """

    stage: str = ""
    step: int = 0
    steps: int = 0
    share: float = 0.0
    left: float | None = None


@dataclass
class DrawJob:
    """A call in the queue. Read it under `JobQueue.reading`, or take what is torn between two steps.

    label: what the page calls it.
    kind: of the files that its pictures are kept in.
    pictures: names of what it made, in order.
    preview: a small picture of what is being made, as the bytes of a file; previews counts them.
    """

    id: int
    call: Any
    label: str
    kind: FileKind = PNG
    state: JobState = JobState.QUEUED
    progress: JobProgress = field(default_factory=JobProgress)
    pictures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    preview: bytes | None = None
    previews: int = 0
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        """Nothing more will happen to it."""
        return self.state in OVER


class JobWatch:
    """What a job at work reports to, and asks whether to go on."""

    def __init__(self, queue: JobQueue, job: DrawJob, clock: Callable[[], float]):
        self._queue, self._job, self._clock = queue, job, clock
        self._first: tuple[float, float] | None = None  # time and share of the first step: before it things are warmed up

    @property
    def kind(self) -> FileKind:
        """Of the files that its pictures are kept in."""
        return self._job.kind

    @property
    def stopped(self) -> bool:
        """The user asked it to end."""
        return self._queue._stop.is_set()

    def stage(self, text: str) -> None:
        """What it does now, beside steps: "Opening the model"."""
        with self._queue._change():
            self._job.progress.stage = text

    def step(self, step: int, steps: int, share: float, preview: bytes | None = None) -> None:
        """A step is done. share: 0 to 1 of the job's whole work."""
        now = self._clock()
        if self._first is None:
            self._first = (now, share)
        begun, from_share = self._first
        left = None
        if share > from_share:
            left = (now - begun) / (share - from_share) * max(1 - share, 0.0)
        with self._queue._change():
            self._job.progress = JobProgress("", step, steps, min(share, 1.0), left)
            if preview is not None:
                self._job.preview, self._job.previews = preview, self._job.previews + 1

    def made(self, picture: str) -> None:
        """A picture is finished and kept under this name."""
        with self._queue._change():
            self._job.pictures.append(picture)

    def note(self, text: str) -> None:
        """Something that the user should know."""
        with self._queue._change():
            if text not in self._job.notes:
                self._job.notes.append(text)


class JobQueue:
    """Jobs in the order in which they will be done, and those that are over.

    work: does a job; what it raises becomes the job's error, in a sentence.
    clock: seconds, for time left.
    """

    def __init__(self, work: Callable[[Any, JobWatch], None], clock: Callable[[], float] = time.monotonic):
        self._work, self._clock = work, clock
        self._waiting: list[DrawJob] = []
        self._running: DrawJob | None = None
        self._over: list[DrawJob] = []
        self._ids = itertools.count(1)
        self._condition = threading.Condition(threading.RLock())
        self._stop = threading.Event()
        self._closed = False
        self._version = 0
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    # ---- what a page reads ----

    @property
    def version(self) -> int:
        """Another number after every change."""
        return self._version

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Nothing changes meanwhile."""
        with self._condition:
            yield

    @property
    def running(self) -> DrawJob | None:
        """The job at work."""
        return self._running

    def waiting(self) -> list[DrawJob]:
        """Those that are still to be done, in their order."""
        with self._condition:
            return list(self._waiting)

    def over(self) -> list[DrawJob]:
        """Those that have ended, the last one first."""
        with self._condition:
            return self._over[::-1]

    def find(self, number: int) -> DrawJob | None:
        """The job of an id, None if there is none or it is forgotten."""
        with self._condition:
            running = [self._running] if self._running else []
            return next((job for job in (*running, *self._waiting, *self._over) if job.id == number), None)

    # ---- what a user does ----

    def add(self, call: Any, label: str, kind: FileKind = PNG) -> DrawJob:
        """Put a call at the end of the queue."""
        with self._change():
            if self._closed:
                raise ValueError("The program is ending, so no more pictures are begun.")
            job = DrawJob(next(self._ids), call, label, kind)
            self._waiting.append(job)
        return job

    def move(self, number: int, by: int) -> bool:
        """Bring a waiting job forward (by < 0) or back; False if it does not wait."""
        with self._change():
            for place, job in enumerate(self._waiting):
                if job.id == number:
                    self._waiting.insert(max(place + by, 0), self._waiting.pop(place))
                    return True
        return False

    def cancel(self, number: int) -> bool:
        """Take a waiting job out, or stop it where it runs; False if it is over or unknown."""
        with self._change():
            if self._running is not None and self._running.id == number:
                self._stop.set()
                return True
            for job in self._waiting:
                if job.id == number:
                    self._waiting.remove(job)
                    self._end(job, JobState.STOPPED)
                    return True
        return False

    def stop(self) -> bool:
        """End the running job after its step; what it finished stays. False if none runs."""
        with self._change():
            if self._running is None:
                return False
            self._stop.set()
            return True

    def forget(self, number: int) -> None:
        """Let a job that is over out of the list."""
        with self._change():
            self._over = [job for job in self._over if job.id != number]

    def wait(self, seconds: float = 60.0) -> bool:
        """Until nothing runs or waits; False if that takes longer."""
        with self._condition:
            return self._condition.wait_for(lambda: self._running is None and not self._waiting, seconds)

    def close(self, seconds: float = 10.0) -> None:
        """Take no more jobs, stop the running one, and end the thread."""
        with self._change():
            self._closed = True
            for job in self._waiting:
                self._end(job, JobState.STOPPED)
            self._waiting.clear()
            self._stop.set()
        self._thread.join(seconds)

    # ---- at work ----

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        with self._condition:
            yield
            self._version += 1
            self._condition.notify_all()

    def _end(self, job: DrawJob, state: JobState) -> None:
        job.state, job.preview = state, None
        self._over = [*self._over, job][-KEPT:]

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or bool(self._waiting))
                if self._closed:
                    return
                job = self._running = self._waiting.pop(0)
                job.state = JobState.RUNNING
                self._stop.clear()
                self._version += 1
                self._condition.notify_all()
            begun, error = self._clock(), ""
            try:
                self._work(job.call, JobWatch(self, job, self._clock))
            except BaseException as problem:  # the thread outlives whatever a job does
                error = sentence(problem) if isinstance(problem, Exception) else f"The job ended by {type(problem).__name__}."
            with self._change():
                self._running = None
                job.seconds = self._clock() - begun
                job.error = error
                stopped = self._stop.is_set() and not error
                self._end(job, JobState.FAILED if error else JobState.STOPPED if stopped else JobState.DONE)
