"""The picture in the middle: what is being made, step by step, then what was made; and what can be done with it."""

from __future__ import annotations

import base64
from typing import Any

from nicegui import ui

from gen.calls.errors import sentence
from gen.ui import dialogs
from gen.ui.gallery import Entry, Gallery
from gen.ui.jobs import DrawJob
from gen.ui.page import Page

RECENT = 40  # pictures in the strip


def build_stage(page: Page) -> None:
    """The frame, the progress below it, the actions, and the strip of what was made last."""
    stage = PictureStage(page)
    page.on("jobs", stage.follow)
    page.on("show", stage.show)
    page.on("pictures", stage.fill_strip)
    stage.fill_strip()


class PictureStage:
    """What is in the middle of one page."""

    def __init__(self, page: Page):
        self.page = page
        self.thumbs: dict[str, Any] = {}
        self.entries: list[Entry] = []
        self.seen: tuple[int, int] = (0, 0)  # job and preview
        self.pictures: tuple[int, int] = (0, 0)  # job and pictures
        with ui.element("div").classes("fs-frame"):
            self.image = ui.element("img").props('alt="" data-stage')
            with ui.element("div").classes("fs-empty") as self.empty:
                ui.html("Write what you would like to see", tag="b", sanitize=False)
                ui.label("Pictures appear here as they are drawn.")
        with ui.element("div").classes("fs-progress fs-idle") as self.row:
            with ui.element("div").classes("fs-bar").props('role="progressbar" aria-label="Progress"'):
                self.bar = ui.element("div")
            self.said = ui.label("").classes("fs-said").props('role="status" data-progress')
            self.stop = ui.button("Stop", icon="stop", on_click=lambda: page.studio.jobs.stop(), color=None)
            self.stop.props('flat dense data-action="stop"').disable()
        with ui.element("div").classes("fs-actions"):
            self.buttons = [
                self._button("Again, another seed", "autorenew", "again", self.again),
                self._button("Use settings", "tune", "use", lambda: dialogs.use_settings(page, page.shown)),
                self._button("Edit", "edit", "edit", self.edit),
                self._button("Details", "info", "details", lambda: dialogs.detail(page, page.shown)),
                self._button("Download", "download", "download", self.download),
                self._button("Delete", "delete", "delete", lambda: dialogs.delete(page, page.shown)),
            ]
        self.strip = ui.element("div").classes("fs-strip").props('role="group" aria-label="Recent pictures"')
        self._enable()

    def _button(self, label: str, icon: str, action: str, do: Any) -> Any:
        return ui.button(label, icon=icon, on_click=do, color=None).props(f'flat dense size=13px data-action="{action}"')

    def follow(self) -> None:
        """Something of the queue changed: the preview, the progress, a new picture."""
        with self.page.studio.jobs.reading():
            job = self.page.studio.jobs.running
            last = job or next(iter(self.page.studio.jobs.over()), None)
            made = (last.id, len(last.pictures)) if last else (0, 0)
            newest = last.pictures[-1] if last and last.pictures else ""
            preview = job.preview if job else None
            seen = (job.id, job.previews) if job else (0, 0)
            self._say(job)
        if made != self.pictures:
            self.pictures = made
            if newest:
                self.fill_strip()
                self.page.show(newest)
        if preview is not None and seen != self.seen:
            self.seen = seen
            self._put("data:image/png;base64," + base64.b64encode(preview).decode(), preview=True)
        if job is None and self.seen != (0, 0):
            self.seen = (0, 0)
            if self.page.shown:
                self.show(self.page.shown)

    def _say(self, job: DrawJob | None) -> None:
        self.stop.set_enabled(job is not None)
        share = 0.0 if job is None else job.progress.share
        self.bar.style(f"width: {100 * share:.1f}%")
        self.said.set_text(self.page.shown if job is None else progress_words(job))
        self.row.classes(add="fs-idle" if job is None else "", remove="" if job is None else "fs-idle")

    def _put(self, source: str, preview: bool = False) -> None:
        self.empty.set_visibility(False)
        self.image.props["src"] = source
        self.image.classes(add="fs-preview" if preview else "", remove="" if preview else "fs-preview")
        self.image.update()

    def show(self, name: str) -> None:
        """A picture of the gallery in the middle, or none."""
        if not name:
            self.image.props["src"] = ""
            self.image.update()
            self.empty.set_visibility(True)
        else:
            self.image.props["alt"] = name
            self._put(self.page.studio.gallery.address(name))
        if self.page.studio.jobs.running is None:
            self.said.set_text(name)
        self._enable()
        self._press()

    def again(self) -> None:
        """The shown picture's settings with another seed."""
        dialogs.draw_again(self.page, self.page.shown)

    def edit(self) -> None:
        """The shown picture on the tab "Edit"."""
        self.page.to_tab("edit")
        self.page.tell("edit", self.page.shown)

    def download(self) -> None:
        """The file itself, its recipe in it."""
        try:
            gallery = self.page.studio.gallery
            ui.download.from_url(gallery.address(gallery.path(self.page.shown).name), self.page.shown)
        except ValueError as error:
            self.page.say(sentence(error), "negative")

    def fill_strip(self) -> None:
        """The thumbnails below, newest first."""
        entries = self.page.studio.gallery.entries()[:RECENT]
        names = [entry.name for entry in entries]
        if entries != self.entries:
            self.entries = entries
            self.strip.clear()
            with self.strip:
                self.thumbs = {
                    name: thumb(self.page.studio.gallery, name, lambda name=name: self.page.show(name)) for name in names
                }
        if self.page.shown and self.page.shown not in names and not self._exists(self.page.shown):
            self.page.show(names[0] if names else "")
        self._press()

    def _exists(self, name: str) -> bool:
        try:
            return self.page.studio.gallery.path(name).is_file()
        except ValueError:
            return False

    def _press(self) -> None:
        for name, button in self.thumbs.items():
            button.props(f'aria-pressed="{"true" if name == self.page.shown else "false"}"')

    def _enable(self) -> None:
        for button in self.buttons:
            button.set_enabled(bool(self.page.shown))


def thumb(gallery: Gallery, name: str, chosen: Any) -> Any:
    """A picture as a button."""
    button = ui.element("button").classes("fs-thumb").on("click", chosen)
    button.props["aria-label"] = name
    button.props["type"] = "button"
    with button:
        image = ui.element("img")
        image.props["src"] = gallery.address(name, "thumbnails")
        image.props["alt"] = ""
        image.props["loading"] = "lazy"
    return button


def progress_words(job: DrawJob) -> str:
    """How far a job is: "step 3 of 20, 12 s left"."""
    progress = job.progress
    if progress.stage or not progress.steps:
        return progress.stage or "Beginning"
    words = f"step {progress.step} of {progress.steps}"
    pictures = job.call.arguments.get("num_images_per_prompt", 1)
    if pictures > 1:
        number = f"picture {min(len(job.pictures) + 1, pictures)} of {pictures}"
        words = number if progress.step == progress.steps else f"{number}, {words}"  # the last step was another picture's
    return words if progress.left is None else f"{words}, {duration(progress.left)} left"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    whole = max(round(seconds), 1)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02} min"
