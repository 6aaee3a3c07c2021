"""One job as it goes: its preview, its progress, its pictures, what went wrong; for tabs that wait for jobs of their own."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from nicegui import ui

from gen.ui.jobs import DrawJob, JobQueue, JobState
from gen.ui.page import Page
from gen.ui.stage import duration, progress_words


class JobProgressBar:
    """How far a job is, with a button that stops it."""

    def __init__(self, page: Page, jobs: JobQueue | None = None, name: str = "job"):
        self.page, self.jobs = page, jobs or page.studio.jobs
        self.job: DrawJob | None = None
        with ui.element("div").classes("fs-progress") as self.row:
            with ui.element("div").classes("fs-bar").props('role="progressbar" aria-label="Progress"'):
                self.bar = ui.element("div")
            self.said = ui.label("").classes("fs-said").props(f'role="status" data-said="{name}"')
            self.stop = ui.button("Stop", icon="stop", on_click=self._end, color=None)
            self.stop.props(f'flat dense data-action="stop-{name}"')
        self.notes = ui.label("").classes("fs-about")
        self.error = ui.label("").classes("fs-wrong").props('role="alert"')
        self.show()

    def follow(self, job: DrawJob) -> None:
        """Show this job from now on."""
        self.job = job
        self.show()

    def _end(self) -> None:
        if self.job is not None:
            self.jobs.cancel(self.job.id)

    def show(self) -> None:
        """As it is now."""
        job = self.job
        over = job is None or job.over
        self.stop.set_visibility(not over)
        self.row.set_visibility(job is not None)
        self.bar.style(f"width: {100 * (0 if job is None else 1 if job.state is JobState.DONE else job.progress.share):.1f}%")
        self.said.set_text("" if job is None else job_words(job))
        self.notes.set_text("" if job is None else " ".join(job.notes))
        self.notes.set_visibility(bool(job and job.notes))
        self.error.set_text("" if job is None else job.error)
        self.error.set_visibility(bool(job and job.error))


class JobView:
    """A frame with what a job makes, its progress below."""

    def __init__(self, page: Page, name: str, empty: str, on_picture: Callable[[str], Any] | None = None):
        self.page, self.name, self.shown, self.on_picture = page, name, "", on_picture
        self.seen = (0, 0)
        with ui.element("div").classes("fs-frame"):
            self.image = ui.element("img").props(f'alt="" data-result="{name}"')
            self.empty = ui.label(empty).classes("fs-empty")
        self.progress = JobProgressBar(page, name=name)
        page.on("jobs", self.update)

    def follow(self, job: DrawJob) -> None:
        """Show this job from now on."""
        self.seen, self.shown = (0, 0), ""
        self.progress.follow(job)

    def update(self) -> None:
        """Something of the queue changed."""
        job = self.progress.job
        if job is None:
            return
        with self.page.studio.jobs.reading():
            made, preview, seen = list(job.pictures), job.preview, (job.id, job.previews)
            self.progress.show()
        if made and made[-1] != self.shown:
            self.shown = made[-1]
            self._put(f"/pictures/{quote(self.shown)}", self.shown)
            if self.on_picture is not None:
                self.on_picture(self.shown)
        elif preview is not None and seen != self.seen:
            self._put("data:image/png;base64," + base64.b64encode(preview).decode(), "A preview")
        self.seen = seen

    def _put(self, source: str, alt: str) -> None:
        self.empty.set_visibility(False)
        self.image.props["src"], self.image.props["alt"] = source, alt
        self.image.update()


def job_words(job: DrawJob) -> str:
    """A job's state in a few words."""
    if job.state is JobState.RUNNING:
        return progress_words(job)
    if job.state is JobState.QUEUED:
        return "waits for what is drawn before it"
    return {JobState.STOPPED: "stopped", JobState.FAILED: "failed"}.get(job.state, f"done in {duration(job.seconds)}")


def primary(label: str, action: str, do: Callable[[], Any]) -> Any:
    """The button of a tab that begins its work."""
    return ui.button(label, on_click=do).props(f'unelevated data-action="{action}"').classes("fs-go")
