"""The engine: pictures of many requests, sharing forward passes of the network (continuous batching).

Every picture runs `Generator`'s own code in a thread of its own, of which one runs at a time, and stops where it would call the
network. A round of the engine lets in what waits, makes one forward pass of the calls that may go together, and lets every
picture go on with its rows. So pictures join and leave between any two calls, whatever their prompts, seeds, adapters, steps,
samplers and guidance are, and each is to the last bit what it is alone (on a CPU, or with batch_invariant=True).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gen.io.threads import lent
from gen.models.bridge.generic.handover import Desk, Handover, Returned
from gen.pipeline.output import Output
from gen.serve.front import GUESS, WINDOW, EngineFront, EngineNumbers
from gen.serve.jobs import (
    CANCELLED,
    DONE,
    FAILED,
    INTERRUPTED,
    LOADING,
    QUEUED,
    RUNNING,
    DeadlineExceeded,
    JobCancelled,
    JobEvent,
    QueueFull,
    ServeJob,
    Unavailable,
)
from gen.serve.models import LoadedModel, ModelPool, ModelSource, OpeningFailed
from gen.serve.notes import noted_by
from gen.serve.sharing import NetworkCall, SharedCall, SharedGenerator
from gen.serve.waiting import FairQueue, WaitingPicture

log = logging.getLogger("fewstep.serve")


@dataclass(eq=False)
class PictureRun:
    """A picture, or several, on the way. call: what it waits for. answer: what it gets next."""

    waiting: WaitingPicture
    model: LoadedModel
    adapters: frozenset[str]
    began: float
    thread: Handover | None = None
    call: SharedCall | None = None
    answer: Any = None
    rows: int = GUESS
    step: int = 0

    @property
    def job(self) -> ServeJob:
        return self.waiting.job


class ServingEngine(EngineFront):
    """Draws by the models of this process.

    sources: name -> how a model is opened.
    memory: bytes that open models may take together, None for any number.
    limits: of `EngineFront`. A picture that needs more rows than `max_rows` runs alone.
    """

    def __init__(self, sources: Mapping[str, ModelSource], *, memory: int | None = None, **limits: Any) -> None:
        super().__init__(sources, **limits)
        self.pool = ModelPool(sources, memory, self.max_rows, self.clock)
        self.counts = EngineNumbers()
        self.runs: list[PictureRun] = []
        self._queue = FairQueue()
        self._dropped: list[ServeJob] = []
        self.preload: list[str] = []  # models that are opened before they are asked for
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self.pool.on_open = self._wake

    # ---- from any thread ----

    def submit(self, job: ServeJob) -> ServeJob:
        self.check_model(job.model)
        self.adapter_files(job)
        with self._changed:
            if self._closing:
                raise Unavailable("The server is stopping and takes no more requests.")
            new = [WaitingPicture(job, index) for index in range(1 if job.together else job.count)]
            waiting = len(self._queue)
            if waiting + len(new) > self.max_queue:
                raise QueueFull(waiting, self.max_queue, self.retry_after(waiting, self.counts.seconds))
            for one in new:
                self._queue.add(one)
            self._changed.notify_all()
        return job

    def cancel(self, job: ServeJob) -> None:
        with self._changed:
            job.cancelled = True
            self._dropped.append(job)
            self._changed.notify_all()

    def interrupt(self, job: ServeJob) -> None:
        job.interrupt = True
        self._wake()

    def jobs(self) -> list[ServeJob]:
        with self._changed:
            running = dict.fromkeys(run.job for run in self.runs)
            return [*running, *(job for job in self._queue.jobs() if job not in running)]

    @property
    def open_models(self) -> list[str]:
        return list(self.pool.loaded)

    def numbers(self) -> EngineNumbers:
        runs, models = list(self.runs), list(self.pool.loaded.values())
        return replace(
            self.counts,
            evictions=self.pool.evictions,
            waiting=len(self._queue),
            running=len(runs),
            running_rows=sum(run.rows for run in runs),
            model_bytes=self.pool.used,
            passes={model.name: model.collector.passes for model in models},
        )

    # ---- the engine's thread ----

    def start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def close(self, timeout: float = 0.0) -> None:
        self.refuse()
        with self._changed:
            waiting = self._queue.jobs()
            self._changed.notify_all()
        for job in waiting:
            if not any(run.job is job for run in self.runs):
                self.cancel(job)
        end = time.monotonic() + timeout
        while self.jobs() and time.monotonic() < end:
            time.sleep(0.02)
        for job in self.jobs():
            self.cancel(job)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        else:
            while self.round():
                pass

    def _work(self) -> None:
        while True:
            try:
                if self.round():
                    continue
            except Exception as error:  # a defect: those whose pictures are on the way are told, and others go on
                log.error("A round of the engine failed", exc_info=error)
                for job in {run.job for run in self.runs}:
                    self._remove(job, FAILED, error)
            with self._changed:
                if self._closing and not self.runs and not len(self._queue):
                    return
                self._changed.wait(0.05 if len(self._queue) else 1.0)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def round(self) -> bool:
        """One forward pass of everything that may go together; whether there was anything to do."""
        self._drop()
        self._let_in()
        if not self.runs:
            return False
        self.counts.rounds += 1
        for model in dict.fromkeys(run.model for run in self.runs):
            own = [run for run in self.runs if run.model is model and run.call is not None]
            answers = model.collector.answers([run.call for run in own if run.call is not None])
            for run, answer in zip(own, answers, strict=True):
                run.answer, run.call = answer, None
        for run in list(self.runs):
            self._go_on(run)
        return True

    def _drop(self) -> None:
        """Jobs that were cancelled, interrupted before they began, or are late."""
        now = self.clock()
        with self._changed:
            dropped, self._dropped = self._dropped, []
            late = [job for job in self.jobs() if job.deadline is not None and now >= job.deadline]
            stopped = [job for job in self._queue.jobs() if job.interrupt]
        for job in stopped:
            with self._changed:
                self._queue.remove(job)
            if not any(run.job is job for run in self.runs):
                job.end(INTERRUPTED)
        for job in dropped:
            self._remove(job, CANCELLED)
        for job in late:
            self._remove(job, FAILED, DeadlineExceeded())

    def _remove(self, job: ServeJob, state: str, error: Exception | None = None) -> None:
        with self._changed:
            self._queue.remove(job)
        for run in [run for run in self.runs if run.job is job]:
            if run.thread is not None:
                run.thread.close()
            self._leave(run)
        if not job.is_over:
            self.counts.cancelled += state == CANCELLED
            self.counts.failed += state == FAILED
        job.end(state, error)

    def _let_in(self) -> None:
        """Begin what waits, one client after another, while there are rows."""
        while True:
            try:
                with self._changed:
                    wanted = list(dict.fromkeys([*(job.model for job in self._queue.jobs()), *self.preload]))
                ready = self.pool.get(wanted)  # which may close a model; whoever submits a job does not wait for that
                with self._changed:
                    one = self._queue.take(set(ready)) if self._has_room() else None
            except OpeningFailed as failed:
                self.preload = [name for name in self.preload if name != failed.name]
                log.error("%s", failed)
                for job in [job for job in self._queue.jobs() if job.model == failed.name]:
                    self._remove(job, FAILED, failed)
                continue
            for job in self._queue.jobs():
                if job.state in (QUEUED, LOADING):
                    job.state = QUEUED if job.model in ready else LOADING
            self.preload = [name for name in self.preload if name not in self.pool.loaded]
            if one is None:
                return
            self._begin(one, ready[one.job.model])

    def _has_room(self) -> bool:
        return not self.runs or sum(run.rows for run in self.runs) + GUESS <= self.max_rows

    def _begin(self, one: WaitingPicture, model: LoadedModel) -> None:
        job = one.job
        model.begin()
        try:
            files = self.adapter_files(job)
            at_work = {name for run in self.runs if run.model is model for name in run.adapters}
            model.load_adapters(files, at_work)
        except Exception as error:
            model.end()
            self._remove(job, FAILED, error)
            return
        run = PictureRun(one, model, frozenset(files), self.clock())
        self.runs.append(run)
        if job.state != RUNNING:
            job.state = RUNNING
            job.tell(JobEvent("started"))
        run.thread = Handover(lambda desk: self._make(desk, run), name=f"picture {one.index} of {job.id}")

    def _go_on(self, run: PictureRun) -> None:
        """Let a run work until its next call, or its end."""
        thread = run.thread
        assert thread is not None
        try:
            if run.answer is None:
                said = thread.begin()
            else:
                answer, run.answer = run.answer, None
                said = thread.resume(answer)
        except Exception as error:
            self._remove(run.job, CANCELLED if isinstance(error, JobCancelled) else FAILED, error)
            return
        if isinstance(said, Returned):
            thread.close()
            self._leave(run)
            self._finish(run, said.value)
            return
        run.call = said.value
        if isinstance(run.call, NetworkCall):
            run.job.steps = max(run.job.steps, run.call.context.steps)
        run.rows = max(run.rows, run.call.rows) if run.call.key is not None else run.rows

    def _leave(self, run: PictureRun) -> None:
        if run in self.runs:
            self.runs.remove(run)
            run.model.end()
            run.call = run.answer = run.thread = None

    def _finish(self, run: PictureRun, output: Output) -> None:
        job, now = run.job, self.clock()
        self.counts.seconds = [*self.counts.seconds[-WINDOW:], now - run.began]
        images = output.images
        for place, (image, recipe) in enumerate(zip(images, output.recipes, strict=True)):
            index = run.waiting.index + place
            job.images[index] = image, recipe
            self.counts.pictures += 1
            job.tell(JobEvent("picture", index, image=image, recipe=recipe))
        waits = any(one.job is job for one in self._queue)
        if not waits and not any(other.job is job for other in self.runs):
            job.end(INTERRUPTED if job.interrupt else DONE)

    # ---- a run's own thread ----

    def _make(self, desk: Desk, run: PictureRun) -> Output:
        """A run's picture: what `Generator` makes of the same keywords."""
        job, generator = run.job, run.model.generator
        view = SharedGenerator.of(generator, desk.ask, run.model.told, job.adapters, job.alone)
        if (limit := job.limit) is not None:
            view.allowed = lambda items, of: limit.check(generator, items, of, job.count)
        seeds: Sequence[int] = job.seeds if job.together else [job.seeds[run.waiting.index]]
        call = getattr(view, job.method) if job.method else view
        with lent(generator.network), noted_by(job):
            return call(
                **{**job.opened_keywords(), "seeds": list(seeds), "num_images_per_prompt": len(seeds), "progress": False},
                callback_on_step_end=lambda *given: self._stepped(run, *given),
                callback_on_step_end_tensor_inputs=["denoised"] if job.previews else [],
            )

    def _stepped(self, run: PictureRun, view: Any, step: int, t: Any, tensors: Mapping[str, Any]) -> dict:
        job = run.job
        if job.cancelled:  # one that never hands over would not be seen to be
            raise JobCancelled("The job was cancelled.")
        job.step += step + 1 - run.step
        run.step = step + 1
        preview = None
        if job.previews and run.step % job.previews == 0:
            with suppress(ValueError):
                preview = job.preview = run.model.generator.preview(tensors["denoised"])[0]  # which keeps its colours
        job.tell(JobEvent("step", run.waiting.index, run.step, job.steps, preview))
        if job.interrupt:
            view.interrupt = True
        return {}
