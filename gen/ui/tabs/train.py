"""The tab "Teach": pictures and what they show, taught to the model as a LoRA, which is in the pickers when it is done."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nicegui import run, ui

from gen.ui.checks import FieldError
from gen.ui.code_dialog import CodePart, show_code
from gen.ui.fields import FieldSet
from gen.ui.job_view import JobProgressBar, primary
from gen.ui.jobs import DrawJob, JobState
from gen.ui.page import Page
from gen.ui.trainings import TrainingJob, TrainingPicture, TrainingSettings
from gen.ui.uploads import picture_upload

LOOK = 0.5  # seconds between two looks at the queue of trainings


def build(page: Page) -> None:
    """Fill the tab."""
    TrainTab(page)


class TrainTab:
    """The tab of one page."""

    def __init__(self, page: Page):
        self.page, self.settings = page, TrainingSettings()
        self.own = FieldSet(page, "train", self.settings)
        self.job: DrawJob | None = None
        self.version, self.shown, self.used = -1, 0, True
        with ui.element("main").classes("fs-draw fs-two"):
            with ui.element("section").classes("fs-prompt").props('aria-label="What to teach"'):
                self._build_form()
            with ui.element("section").classes("fs-settings").props('aria-label="How it is taught"'):
                self._build_how()
            with ui.element("section").classes("fs-stage").props('aria-label="Pictures to learn from"'):
                self._build_pictures()
        ui.timer(LOOK, self.update)

    def _build_form(self) -> None:
        self.own.text("name", "Name of the LoRA", "my cat")
        self.own.text("prompt", "What the pictures show", "a <new> cat", rows=2)
        with ui.element("div").classes("fs-row"):
            self.own.text("word", "New word", "<new>")
            self.own.text("starts_as", "Starts as", "cat")
        primary("Teach", "draw-training", self.begin)
        with ui.element("div").classes("fs-row"):
            ui.label("Drawing goes on meanwhile, more slowly").classes("fs-hint").style("text-align: left")
            code = ui.button("As code", icon="code", on_click=self.show_code, color=None).classes("fs-fixed")
            code.props('flat dense size=sm data-action="code-training"')

    def _build_how(self) -> None:
        with ui.element("div").classes("fs-form fs-edit-form"):
            with ui.element("div").classes("fs-row"):
                self.own.number("steps", "Steps", "300")
                self.own.number("rank", "Rank", "8")
            self.own.text("class_prompt", "Keep in place by pictures of", "nothing; e.g. a cat")
            self.own.switch("style", "A style: teach all layers")
            ui.label(
                "A subject needs five to twenty pictures, and a new word that stands for it. More steps learn it better and "
                "forget more of the rest; pictures of its class hold that in place, and take half of the time."
            ).classes("fs-about")

    def _build_pictures(self) -> None:
        box = picture_upload(self.page, "Drop pictures, or", self._uploaded, several=True)
        box.props('data-upload="train"')
        self.said = ui.label("No pictures yet.").classes("fs-about").props('role="status" data-pictures')
        self.own.know("pictures", self.said)
        self.list = ui.element("div").classes("fs-lessons").props('role="list"')
        self.progress = JobProgressBar(self.page, self.page.studio.trainings, name="training")
        self.sheet = ui.element("img").classes("fs-sheet-shown").props('alt="What it draws by now"')
        self.sheet.set_visibility(False)
        self.done = ui.label("").classes("fs-about").props('role="status" data-trained')

    # ---- pictures ----

    async def _uploaded(self, _: str, data: bytes) -> None:
        file = await run.io_bound(self.page.studio.gallery.keep_given, data)
        if str(file) not in (one.file for one in self.settings.pictures):
            self.settings.pictures.append(TrainingPicture(str(file)))
            self._add(self.settings.pictures[-1])
        self._count()

    def _add(self, picture: TrainingPicture) -> None:
        with self.list, ui.element("div").classes("fs-lesson").props('role="listitem"') as row:
            image = ui.element("img")
            image.props["src"], image.props["alt"] = f"/given/{quote(Path(picture.file).name)}", ""

            def captioned(event: Any) -> None:
                picture.caption = event.value or ""

            def leave() -> None:
                self.settings.pictures.remove(picture)
                row.delete()
                self._count()

            caption = ui.input(placeholder="Its own caption", value=picture.caption, on_change=captioned)
            caption.props("outlined dense").classes("fs-field").props["aria-label"] = "Caption"
            away = ui.button(icon="close", on_click=leave, color=None).props("flat dense round").classes("fs-fixed")
            away.props["aria-label"] = "Without this picture"

    def _count(self) -> None:
        count = len(self.settings.pictures)
        self.said.set_text(f"{count} picture{'s' * (count != 1)}." if count else "No pictures yet.")

    # ---- teaching ----

    def to_job(self) -> TrainingJob | None:
        """What is set; None where it cannot be, which is then said."""
        self.own.right()
        try:
            return self.settings.to_job(self.page.settings.model)
        except FieldError as error:
            self.own.wrong(error.field, str(error))
        return None

    def begin(self) -> None:
        """Put it into the queue of trainings."""
        job = self.to_job()
        if job is None:
            return
        try:
            self.job = self.page.studio.trainings.add(job, f"Teach: {job.name}")
        except ValueError as error:
            self.page.say(str(error), "negative")
            return
        self.used, self.shown = False, 0
        self.done.set_text("")
        self.sheet.set_visibility(False)
        self.progress.follow(self.job)

    async def show_code(self) -> None:
        """The command line of what is set."""
        job = self.to_job()
        if job is not None:
            line = await run.io_bound(job.as_command, self.page.studio)
            show_code(self.page, [CodePart("The same training", {"Command line": line or ""})])

    def update(self) -> None:
        """Look what the queue of trainings does."""
        trainings = self.page.studio.trainings
        if trainings.version == self.version:
            return
        self.version = trainings.version
        self.page.tell("adapters")
        if self.job is None:
            return
        with trainings.reading():
            job, preview, number = self.job, self.job.preview, self.job.previews
            self.progress.show()
        if preview is not None and number != self.shown:
            self.shown = number
            self.sheet.props["src"] = "data:image/png;base64," + base64.b64encode(preview).decode()
            self.sheet.update()
            self.sheet.set_visibility(True)
        if job.state is JobState.DONE and not self.used and job.call.made is not None:
            self.used = True
            self._use(job.call)
        elif job.state is JobState.STOPPED:
            self.done.set_text("What it learned is kept: teach the same once more, and it goes on from there.")

    def _use(self, job: TrainingJob) -> None:
        """Let the finished LoRA act on the tab "Draw"."""
        assert job.made is not None
        self.page.settings.adapters[str(job.made)] = 1.0
        if not self.page.settings.prompt:
            self.page.settings.prompt = job.caption
        self.page.tell("settings")
        text = f"{job.made.name} is finished, and acts on the tab Draw now."
        self.done.set_text(text)
        self.page.say(text, "positive")
