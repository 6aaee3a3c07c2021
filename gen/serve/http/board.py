"""Jobs as HTTP sees them: what the engine tells of them, brought to the event loop, and their pictures as files.

Encoding, and writing to the disk, is done in threads of their own; a picture counts as there once it is encoded and saved.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from gen.calls.keywords import MAPPED, PICTURES
from gen.pipeline.recipe import Recipe
from gen.serve.failures import said
from gen.serve.front import EngineFront
from gen.serve.http.errors import BadRequest
from gen.serve.http.formats import PNG, PictureFormat
from gen.serve.http.settings import ServerSettings
from gen.serve.jobs import OVER, JobCancelled, JobEvent, ServeJob, TooMuchSent
from gen.serve.sent import sent_bytes
from samplers.atomic import written

ENCODERS = 2  # threads
HELD = (*PICTURES, *MAPPED, "layout")  # keywords with pictures that were sent, which a job that is over does not keep


@dataclass(frozen=True)
class FinishedPicture:
    """index: in its job. data: the file's, in `format`, with its recipe."""

    index: int
    data: bytes
    format: PictureFormat
    recipe: Recipe


@dataclass(eq=False)
class FollowedJob:
    """A job, what its pictures are sent as, those that are finished, and who follows it. sent: bytes of the pictures that came
    with it, as they were sent, which are kept until it is over."""

    job: ServeJob
    format: PictureFormat = PNG
    sent: int = 0
    pictures: dict[int, FinishedPicture] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    events: asyncio.Queue[JobEvent] = field(default_factory=asyncio.Queue)
    followers: list[asyncio.Queue[JobEvent | FinishedPicture]] = field(default_factory=list)

    @property
    def made(self) -> list[FinishedPicture]:
        return [self.pictures[index] for index in sorted(self.pictures)]

    @property
    def size(self) -> int:
        return sum(len(picture.data) for picture in self.pictures.values())


class JobBoard:
    """Follows jobs from the event loop. It belongs to one loop."""

    def __init__(self, engine: EngineFront, settings: ServerSettings, on_end: Callable[[ServeJob], None]) -> None:
        self.engine, self.settings, self.on_end = engine, settings, on_end
        self.jobs: OrderedDict[str, FollowedJob] = OrderedDict()
        self._encoders = ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode")
        self._tasks: set[asyncio.Task] = set()

    def submit(self, job: ServeJob, format: PictureFormat = PNG) -> FollowedJob:
        """Hand a job to the engine and follow it; what the engine refuses is raised, and TooMuchSent where the pictures of jobs
        that wait would take more memory than the settings allow."""
        loop, followed = asyncio.get_running_loop(), FollowedJob(job, format, sent_bytes(job.keywords))
        held = sum(other.sent for other in self.jobs.values() if not other.over.is_set())
        if followed.sent and held and held + followed.sent > self.settings.max_sent:
            raise TooMuchSent(held, self.settings.max_sent)
        job.listener = lambda event: _put(loop, followed, event)
        self.engine.submit(job)
        self.jobs[job.id] = followed
        task = loop.create_task(self._follow(followed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return followed

    def find(self, name: str, client: str) -> FollowedJob | None:
        """A client's job; those of others are none."""
        followed = self.jobs.get(name)
        return followed if followed is not None and followed.job.client == client else None

    async def result(self, followed: FollowedJob, request: Request | None = None) -> list[FinishedPicture]:
        """The pictures of a job that is over; what went wrong is raised. A client that leaves cancels it."""
        over = asyncio.ensure_future(followed.over.wait())
        gone = asyncio.ensure_future(_left(request)) if request is not None else None
        try:
            await asyncio.wait([over, gone] if gone is not None else [over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (over, gone):
                if task is not None:
                    task.cancel()
            if not followed.over.is_set():
                self.engine.cancel(followed.job)
        if not followed.over.is_set():
            raise JobCancelled("The client has left.")
        if followed.job.error is not None:
            raise followed.job.error
        if followed.job.state == "cancelled":
            raise JobCancelled("The job was cancelled.")
        return followed.made

    def stream(self, followed: FollowedJob) -> AsyncIterator[JobEvent | FinishedPicture]:
        """What happens to a job from now on, up to the event that ends it. Whoever stops listening cancels it."""
        queue: asyncio.Queue[JobEvent | FinishedPicture] = asyncio.Queue()
        followed.followers.append(queue)
        return self._listen(followed, queue)

    async def _listen(
        self, followed: FollowedJob, queue: asyncio.Queue[JobEvent | FinishedPicture]
    ) -> AsyncIterator[JobEvent | FinishedPicture]:
        try:
            while True:
                event = await queue.get()
                yield event
                if isinstance(event, JobEvent) and event.kind in OVER:
                    return
        finally:
            followed.followers.remove(queue)
            if not followed.job.is_over:
                self.engine.cancel(followed.job)

    async def close(self) -> None:
        """Wait for what the engine has told already."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=10)
        self._encoders.shutdown(wait=False)

    async def _follow(self, followed: FollowedJob) -> None:
        loop = asyncio.get_running_loop()
        failed: Exception | None = None
        while True:
            event = await followed.events.get()
            told: JobEvent | FinishedPicture = event
            if event.kind == "picture":
                try:
                    told = await loop.run_in_executor(self._encoders, self._finish, followed, event)
                except Exception as error:  # the disk is full, say
                    failed = error
                    self.engine.cancel(followed.job)
                    continue
                followed.pictures[told.index] = told
                followed.job.images[told.index] = None, told.recipe  # its pixels are in the file
            over = isinstance(told, JobEvent) and told.kind in OVER
            if over:
                followed.job.error = self._without_places(failed or followed.job.error)
                kept = followed.job.keywords
                followed.job.keywords = {name: kept[name] for name in kept if name not in HELD}
                followed.over.set()
                self._keep_within_bounds()
                self.on_end(followed.job)
            for queue in followed.followers:
                queue.put_nowait(told)
            if over:
                return

    def _without_places(self, error: Exception | None) -> Exception | None:
        """An error whose words name no file of the server: what requests may name has names."""
        names = {**self.settings.controlnets, **self.settings.ip_adapters}
        text = str(error)
        for name, place in names.items():
            text = text.replace(str(place), name)
        return error if error is None or text == str(error) else BadRequest(text, status=said(error)[0])

    def _finish(self, followed: FollowedJob, event: JobEvent) -> FinishedPicture:
        """Encode a picture, and save it where that is asked for, before anybody gets it."""
        assert event.recipe is not None
        format, data = followed.format, followed.format.encode(event.image, event.recipe)
        if self.settings.save is not None:
            words = re.sub(r"[^a-z0-9]+", "-", event.recipe.prompt.lower())[:40].strip("-") or "picture"
            path = self.settings.save / f"{words}-{event.recipe.seed}-{followed.job.id}-{event.index}.{format.ending}"
            with written(path, overwrite=False) as temporary:
                temporary.write_bytes(data)
        return FinishedPicture(event.index, data, format, event.recipe)

    def _keep_within_bounds(self) -> None:
        """Forget the oldest jobs that are over."""
        over = [followed for followed in self.jobs.values() if followed.over.is_set()]
        size = sum(followed.size for followed in over)
        for followed in over[:-1]:
            if len(over) <= self.settings.kept_jobs and size <= self.settings.kept_bytes:
                return
            del self.jobs[followed.job.id]
            over, size = over[1:], size - followed.size


def _put(loop: Any, followed: FollowedJob, event: JobEvent) -> None:
    """From the engine's thread to the loop, which may be gone by then."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(followed.events.put_nowait, event)


async def _left(request: Request) -> None:
    """Until the client of a request is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
