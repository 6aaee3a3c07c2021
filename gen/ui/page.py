"""The frame of the page: its head, its tabs, and what the parts of one open page share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from nicegui import ui

from gen.calls.call import Call
from gen.calls.errors import sentence
from gen.ui.checks import FieldError
from gen.ui.fields import FieldSet
from gen.ui.jobs import DrawJob
from gen.ui.settings import DrawSettings
from gen.ui.studio import Studio
from gen.ui.tabs import TABS
from gen.ui.toasts import Toasts

TICK = 0.1  # seconds between two looks at the queue
OPENS = 0.35  # seconds that a section takes to open

Listener = Callable[..., Any]


class Page:
    """One open page: its settings, and who wants to hear of what.

    Events: "ready" (the registries are read), "jobs" (something of the queue changed), "settings" (loaded from outside: fields
    show them anew), "show" (a picture's name, to be looked at), "pictures" (the gallery changed), "model" (another is
    chosen).
    """

    def __init__(self, studio: Studio):
        self.studio = studio
        self.settings = DrawSettings(model=studio.model)
        self.fields: dict[str, Any] = {}
        self.own = FieldSet(self, "", self.settings)
        self.shown = ""  # the picture in the middle
        self.tabs: Any = None
        self.toasts: Any = None
        self.root: Any = None  # where dialogs are made
        self.reading: Any = None  # what takes pictures whose settings are to be read
        self.loud = False  # it is known whether everything is ready
        self._listeners: dict[str, list[Listener]] = {}
        self._version = -1
        self._told: set[int] = {job.id for job in studio.jobs.over()}
        self._begun: dict[int, FieldSet | None] = {}

    # ---- events ----

    def on(self, event: str, listener: Listener) -> None:
        """Call a function whenever this happens."""
        self._listeners.setdefault(event, []).append(listener)

    def tell(self, event: str, *values: Any) -> None:
        """It has happened. What a listener raises is said on the page, and the others hear of it all the same."""
        for listener in self._listeners.get(event, ()):
            try:
                listener(*values)
            except Exception as error:
                self.say(sentence(error), "negative")

    def tick(self) -> None:
        """Look what has changed since the last time."""
        if not self.loud and self.studio.ready.is_set():
            self.loud = True
            if self.studio.problem:
                self.say(self.studio.problem, "negative")
            self.tell("ready")
        if (version := self.studio.jobs.version) != self._version:
            self._version = version
            self._hear_of_ends()
            self.tell("jobs")

    def _hear_of_ends(self) -> None:
        for job in self.studio.jobs.over():
            if job.id not in self._told:
                self._told.add(job.id)
                if job.error and job.id in self._begun:  # of other pages the queue says it
                    self._say_of(self._begun[job.id], job.error)
                self.tell("pictures")

    def _say_of(self, fields: FieldSet | None, text: str) -> None:
        """What a job came to grief over: beside the field that it begins with, where that is one of the job's own tab."""
        if fields is None:
            self.say(text, "negative")
        elif fields is self.own:
            self.show_error(text)
        else:
            fields.mark_keyword(text)  # its tab shows the sentence with the job

    # ---- messages ----

    def say(self, text: str, kind: str = "info", action: str = "", do: Callable[[], Any] | None = None) -> None:
        """A message that goes away by itself; one that says what is wrong ("negative") stays until it is closed.

        action, do: a button in it.
        """
        self.toasts.add(text, kind, action, do)

    def show_error(self, text: str) -> None:
        """Beside the field of Draw that an error begins with, as in "guidance_scale is 200; ...", else as a message."""
        if not self.own.mark_keyword(text):
            self.say(text, "negative")

    def mark(self, name: str, text: str | None) -> bool:
        """Put a sentence beside a field, None takes it away; False if there is no such field."""
        field = self.fields.get(name)
        if field is None or field.is_deleted or not hasattr(field, "error"):
            return False
        field.error = text
        if text:
            _bring_into_view(field)
        return True

    # ---- what is done ----

    def begun(self, job: DrawJob, fields: FieldSet | None = None) -> DrawJob:
        """A job of this page: what goes wrong with it is said here, beside these fields, or as a message without any."""
        self._begun[job.id] = fields
        return job

    def draw(self, **other: Any) -> DrawJob | None:
        """Put the settings into the queue, with other values for some arguments; None where they cannot be."""
        self.own.right()
        try:
            call = self.settings.to_call(self.studio.catalogue)
            job = self.studio.submit(call.with_arguments(**other) if other else call, kind=self.settings.kind())
            return self.begun(job, self.own)
        except FieldError as error:
            self.own.wrong(error.field, str(error))
        except ValueError as error:
            self.show_error(str(error))
        return None

    def call_of_draw(self) -> Call | None:
        """What the tab Draw says, for another tab; None where it cannot be, which is then said with the field's name."""
        try:
            self.settings.kind()
            return self.settings.to_call(self.studio.catalogue)
        except FieldError as error:
            field = self.fields.get(error.field)
            name = error.field if field is None else field.props.get("label", error.field)
            self.say(f"{name}, on the tab Draw: {error}", "negative")
        except ValueError as error:
            self.say(f"On the tab Draw: {error}", "negative")
        return None

    def show(self, name: str) -> None:
        """Look at a picture of the gallery in the middle."""
        self.shown = name
        self.tell("show", name)

    def to_tab(self, name: str) -> None:
        """Go to a tab."""
        self.tabs.set_value(name)


def build_page(studio: Studio) -> None:
    """All of one page, for one browser."""
    page = Page(studio)
    ui.add_head_html('<link rel="stylesheet" href="/page/style.css"><script src="/page/page.js" defer></script>')
    ui.colors(primary="#3d5afe", negative="#c62828", dark="#1b1b1e", dark_page="#131315")
    dark = ui.dark_mode(None)
    page.root = ui.element("div").classes("fs-over-page")
    page.toasts = Toasts()
    from gen.ui.dialogs import build_reading  # which knows pages

    with page.root:
        page.reading = build_reading(page)
    with ui.element("header").classes("fs-head"):
        with ui.element("h1").classes("fs-mark"):
            ui.element("img").props('src="/page/icon.svg" alt=""')
            ui.html("fewstep", tag="span", sanitize=False)
        page.tabs = ui.tabs(value=TABS[0].name)  # type: ignore[arg-type]
        page.tabs.props("dense no-caps indicator-color=primary")
        with page.tabs:
            for row in TABS:
                ui.tab(row.name, row.label).props(f'data-tab="{row.name}"')
        ui.element("div").classes("fs-space")
        status = ui.label("Opening the model …").classes("fs-status").props('role="status"')
        _dark_button(dark)
    with ui.tab_panels(page.tabs, value=TABS[0].name, animated=False, keep_alive=True).classes("fs-wide"):
        for row in TABS:
            with ui.tab_panel(row.name).classes("fs-panel-page"):
                importlib.import_module(f"gen.ui.tabs.{row.module}").build(page)
    page.on("ready", lambda: status.set_text("Not ready" if studio.problem else "Ready"))
    ui.on_exception(lambda error: page.say(sentence(error), "negative"))
    page.tick()
    ui.timer(TICK, page.tick)


def _bring_into_view(field: Any) -> None:
    """Open the section that holds a field, and put the cursor into it once it is there."""
    slot = field.parent_slot
    while slot is not None:
        if isinstance(slot.parent, ui.expansion):
            slot.parent.set_value(True)
        slot = slot.parent.parent_slot
    with field.parent_slot:
        ui.timer(OPENS, lambda: field.run_method("focus"), once=True)


def _dark_button(dark: Any) -> None:
    """Between the system's own look, light and dark."""
    looks = {None: ("brightness_auto", "as the system"), False: ("light_mode", "light"), True: ("dark_mode", "dark")}
    order = [None, False, True]
    button = ui.button(icon=looks[None][0], color=None).props('flat round dense aria-label="Look: as the system"')

    def turn() -> None:
        dark.value = order[(order.index(dark.value) + 1) % 3]
        icon, words = looks[dark.value]
        button.props(f'icon={icon} aria-label="Look: {words}"')

    button.on_click(turn)
