"""Replicas on Ray Serve: each is an engine with models of its own, and this process hands every job to one of them.

HTTP, keys, files and the bounds of the queue stay here, in `ReplicatedEngine`; a replica knows nothing of them. A picture is a
function of its seed and settings, so a job whose replica dies is made by another, and nobody sees more than a delay.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gen.batch.ray_pool import RayOptions, ray_module, resources
from gen.serve.collector import Passes
from gen.serve.failures import said
from gen.serve.front import EngineFront, EngineNumbers
from gen.serve.jobs import (
    CANCELLED,
    FAILED,
    OVER,
    DeadlineExceeded,
    JobCancelled,
    JobEvent,
    QueueFull,
    ServeError,
    ServeJob,
    Unavailable,
)

log = logging.getLogger("fewstep.serve")
APPLICATION = "fewstep"
TRIES = 3  # replicas that a job may be handed to
ASKED_EVERY = 2.0  # seconds between questions for the replicas' numbers
MOST_JOBS = 1000  # of a replica; the bounds that clients see are the front's
HANDED_ON = ("model", "client", "keywords", "seeds", "adapters", "method", "together", "alone", "previews", "limit", "id")


class RemoteFailure(ServeError):
    """What went wrong in a replica, in the words of its error."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> Any:
        return RemoteFailure, (str(self), self.status)


@dataclass(frozen=True)
class ReplicaEvent:
    """What a replica tells of a job: an event, and where the job stands."""

    event: JobEvent
    step: int
    steps: int
    notes: tuple[str, ...]


def portable(error: Exception | None) -> Exception | None:
    """An error as it can be sent to another process: as a client of this one would be told it."""
    if error is None:
        return None
    status, sentence = said(error)
    return RemoteFailure(sentence, status)


class PictureReplica:
    """An engine in a process of Ray's. models, arguments, memory: of `make_engine`. limits: of `ServingEngine`."""

    def __init__(
        self, models: Sequence[str], arguments: Mapping[str, Any], memory: int | None, limits: Mapping[str, Any], threads: int
    ) -> None:
        import torch

        from gen.serve.notes import notes_kept
        from gen.serve.start import make_engine

        torch.set_num_threads(threads)
        self._notes = notes_kept()
        self._notes.__enter__()
        self.engine = make_engine(models, arguments, memory=memory, **limits)
        self.engine.start()
        self.jobs: dict[str, ServeJob] = {}

    async def make(self, asked: Mapping[str, Any], seconds: float | None) -> AsyncIterator[ReplicaEvent]:
        """What happens to a job up to its end. seconds: until its deadline. Whoever stops listening cancels it."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[JobEvent]()
        job = ServeJob(**asked)
        job.deadline = None if seconds is None else self.engine.clock() + seconds

        def tell(event: JobEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job.listener = tell
        try:
            self.engine.submit(job)
        except ServeError as error:
            yield ReplicaEvent(JobEvent(FAILED, error=portable(error)), 0, 0, ())
            return
        self.jobs[job.id] = job
        try:
            while True:
                event = await events.get()
                yield ReplicaEvent(replace(event, error=portable(event.error)), job.step, job.steps, tuple(job.notes))
                if event.kind in OVER:
                    return
        finally:
            del self.jobs[job.id]
            if not job.is_over:
                self.engine.cancel(job)

    async def interrupt(self, name: str) -> None:
        """End a job after its step, if it is one of this replica's."""
        if (job := self.jobs.get(name)) is not None:
            self.engine.interrupt(job)

    async def numbers(self) -> tuple[EngineNumbers, list[str]]:
        """(its state, the models that are open)."""
        return self.engine.numbers(), self.engine.open_models


class ReplicatedEngine(EngineFront):
    """Hands jobs to replicas. ray: connected (`gen.batch.ray_pool.cluster`).

    models: names of those that requests may name, in the order of `specs`, which replicas open them by.
    arguments, memory: of `make_engine`. options: how many replicas there are, and what each has.
    """

    def __init__(
        self,
        ray: Any,
        models: Sequence[str],
        specs: Sequence[str],
        arguments: Mapping[str, Any],
        options: RayOptions,
        *,
        memory: int | None = None,
        **limits: Any,
    ) -> None:
        super().__init__(models, **limits)
        self.replicas, self._needs = resources(ray, arguments.get("device"), options)
        engine = {"max_rows": self.max_rows, "max_queue": 100_000, "adapters": self.adapters}
        self._made_of = (tuple(specs), dict(arguments), memory, engine, options.cpus_per_actor)
        self._handle: Any = None
        self._jobs: dict[str, ServeJob] = {}
        self._calls: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._numbers, self._open = EngineNumbers(), list[str]()
        self._seconds: list[float] = []
        self._stopped = threading.Event()
        self._ready = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._deploy, name="replicas", daemon=True).start()

    def _deploy(self) -> None:
        """Start the replicas, then ask them how they do until the end."""
        serve = ray_module("ray.serve")
        try:
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
            deployment = serve.deployment(
                PictureReplica,
                name="pictures",
                num_replicas=self.replicas,
                ray_actor_options=self._needs,
                max_ongoing_requests=MOST_JOBS,
                graceful_shutdown_timeout_s=5.0,
            )
            self._handle = serve.run(deployment.bind(*self._made_of), name=APPLICATION, route_prefix=None)
        except Exception as error:
            log.error("The replicas cannot be started", exc_info=error)
        self._ready.set()
        while self._handle is not None and not self._stopped.is_set():
            try:
                self._ask_numbers()
            except Exception as error:  # a replica that has just died; its jobs go to another
                log.warning("The replicas do not answer: %s", type(error).__name__)
            self._stopped.wait(ASKED_EVERY)

    def _ask_numbers(self) -> None:
        found = self._handle.broadcast("numbers").results()
        total = EngineNumbers()
        for numbers, _ in found:
            for one in fields(EngineNumbers):
                if one.name not in ("passes", "seconds"):
                    setattr(total, one.name, getattr(total, one.name) + getattr(numbers, one.name))
            for name, passes in numbers.passes.items():
                total.passes[name] = sum_of(total.passes.get(name, Passes()), passes)
        self._numbers = total
        self._open = [name for name in self.models if any(name in models for _, models in found)]

    def submit(self, job: ServeJob) -> ServeJob:
        self.check_model(job.model)
        self.adapter_files(job)
        with self._lock:
            if self._closing:
                raise Unavailable("The server is stopping and takes no more requests.")
            asked = sum(one.count for one in self._jobs.values())
            room = self.max_queue + self.replicas * max(self.max_rows // 2, 1)  # those that wait, and those on the way
            if asked + job.count > room:
                waiting = max(asked - (room - self.max_queue), 0)
                raise QueueFull(waiting, self.max_queue, self.retry_after(waiting, self._seconds))
            self._jobs[job.id] = job
        threading.Thread(target=self._follow, args=(job,), name=f"job {job.id}", daemon=True).start()
        return job

    def _follow(self, job: ServeJob) -> None:
        """Hand a job to a replica, and to another where that one dies."""
        began = time.monotonic()
        try:
            while not self._ready.wait(0.2):  # replicas may take minutes to start
                if job.cancelled:
                    return
                if job.deadline is not None and self.clock() >= job.deadline:
                    raise DeadlineExceeded
            if self._handle is None:
                raise Unavailable("The server's replicas cannot be started; ask again later.")
            for number in range(TRIES):
                try:
                    self._listen(job)
                    break
                except Exception as error:
                    if job.cancelled or job.is_over:
                        break
                    if number + 1 == TRIES or not _is_death(error):
                        raise
                    job.step = 0
            self._seconds = [*self._seconds[-31:], time.monotonic() - began]
        except Exception as error:
            job.end(FAILED, error)
        finally:
            job.end(CANCELLED if job.cancelled else FAILED, None if job.cancelled else JobCancelled("The job was dropped."))
            with self._lock:
                self._jobs.pop(job.id, None)
                self._calls.pop(job.id, None)

    def _listen(self, job: ServeJob) -> None:
        asked = {name: getattr(job, name) for name in HANDED_ON}
        seconds = None if job.deadline is None else max(job.deadline - self.clock(), 0.0)
        call = self._handle.options(method_name="make", stream=True).remote(asked, seconds)
        self._calls[job.id] = call
        if job.cancelled:
            call.cancel()
        for told in call:
            event = told.event
            job.step, job.steps, job.notes[:] = told.step, told.steps, told.notes
            if event.kind in OVER:
                job.end(event.kind, event.error)
                return
            if event.kind == "picture":
                if event.index in job.images:  # of the replica that died
                    continue
                job.images[event.index] = event.image, event.recipe
            if event.preview is not None:
                job.preview = event.preview
            job.state = "running"
            job.tell(event)

    def cancel(self, job: ServeJob) -> None:
        job.cancelled = True
        if (call := self._calls.get(job.id)) is not None:
            call.cancel()

    def interrupt(self, job: ServeJob) -> None:
        job.interrupt = True
        if self._handle is not None:
            self._handle.broadcast("interrupt", job.id)

    def jobs(self) -> list[ServeJob]:
        with self._lock:
            return sorted(self._jobs.values(), key=lambda job: job.state != "running")

    @property
    def open_models(self) -> list[str]:
        return self._open

    def numbers(self) -> EngineNumbers:
        return self._numbers

    def close(self, timeout: float = 0.0) -> None:
        self.refuse()
        end = time.monotonic() + timeout
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.05)
        for job in self.jobs():
            self.cancel(job)
        end = time.monotonic() + 5.0
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.05)
        self._stopped.set()
        self._ready.wait(60.0)
        ray_module("ray.serve").shutdown()


def sum_of(one: Passes, other: Passes) -> Passes:
    """What two engines did."""
    alone = {why: one.alone.get(why, 0) + other.alone.get(why, 0) for why in (*one.alone, *other.alone)}
    return Passes(one.count + other.count, one.rows + other.rows, one.shared + other.shared, alone)


def _is_death(error: Exception) -> bool:
    """Of the replica, rather than of the job."""
    exceptions = ray_module("ray.exceptions")
    return isinstance(error, exceptions.RayActorError | exceptions.WorkerCrashedError | exceptions.NodeDiedError)
