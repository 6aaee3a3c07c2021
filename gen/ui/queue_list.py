"""The queue: what runs, what waits, what has ended."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from gen.ui.jobs import DrawJob, JobState
from gen.ui.page import Page
from gen.ui.stage import duration, progress_words

OVER = 12  # ended jobs that are listed


def build_queue(page: Page) -> None:
    """The list; rows are made anew only when the order or a state changes, so that the focus stays where it is."""
    ui.html("Queue", tag="h2", sanitize=False).classes("fs-title")
    empty = ui.label("Nothing waits. What you draw while a picture is made lines up here.").classes("fs-about")
    keys = ui.label("Alt and the arrows move a job that waits, Delete takes it away.").classes("fs-about")
    rows = ui.element("div").props('role="list" data-queue aria-label="Queue"')
    shape: list[Any] = []
    said: dict[int, Any] = {}

    def show() -> None:
        jobs = page.studio.jobs
        with jobs.reading():
            waiting = jobs.waiting()
            listed = [*([jobs.running] if jobs.running else []), *waiting, *jobs.over()[:OVER]]
            now = [(job.id, job.state, len(job.notes)) for job in listed]
            words = {job.id: state_words(job) for job in listed}
        empty.set_visibility(not listed)
        keys.set_visibility(len(waiting) > 1)
        if now != shape:
            shape[:] = now
            said.clear()
            rows.clear()
            with rows:
                for job in listed:
                    said[job.id] = _row(page, job, waiting)
        for number, text in words.items():
            said[number].set_text(text)

    page.on("jobs", show)
    show()


def state_words(job: DrawJob) -> str:
    """What the list says below a job's prompt."""
    pictures = f"{len(job.pictures)} picture{'s' * (len(job.pictures) != 1)}"
    if job.state is JobState.RUNNING:
        return progress_words(job)
    if job.state is JobState.QUEUED:
        return "waits"
    if job.state is JobState.FAILED:
        return job.error
    how = "stopped" if job.state is JobState.STOPPED else duration(job.seconds)
    return f"{pictures}, {how}" if job.pictures else how


def _row(page: Page, job: DrawJob, waiting: list[DrawJob]) -> Any:
    jobs = page.studio.jobs
    with ui.element("div").classes("fs-job") as row:
        row.props(f'role="listitem" tabindex=0 data-job="{job.id}" data-state="{job.state.value}"')
        row.props["aria-label"] = job.label
        with ui.element("div").classes("fs-what"):
            ui.label(job.label).classes("fs-label")
            said = ui.label("").classes("fs-state" + (" fs-error" if job.state is JobState.FAILED else ""))
            for note in job.notes:
                ui.label(note).classes("fs-state")
        if job.state is JobState.QUEUED:
            if job is not waiting[0]:
                _small("arrow_upward", f"Sooner: {job.label}", lambda: jobs.move(job.id, -1), "sooner")
            if job is not waiting[-1]:
                _small("arrow_downward", f"Later: {job.label}", lambda: jobs.move(job.id, 1), "later")
            _small("close", f"Cancel: {job.label}", lambda: jobs.cancel(job.id), "cancel")
        elif job.state is JobState.RUNNING:
            _small("stop", f"Stop: {job.label}", lambda: jobs.cancel(job.id), "end")
        else:
            if job.pictures:
                _small("visibility", f"Show: {job.label}", lambda: page.show(job.pictures[-1]), "show")
            _small("close", f"Forget: {job.label}", lambda: jobs.forget(job.id), "forget")
    return said


def _small(icon: str, label: str, do: Any, action: str) -> None:
    button = ui.button(icon=icon, on_click=do, color=None).props(f'flat dense round size=sm data-job-action="{action}"')
    button.props["aria-label"] = label
