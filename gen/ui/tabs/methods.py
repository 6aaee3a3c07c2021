"""The tab "Methods": what every solver, schedule, guidance rule and cache does, costs and comes from, with a small picture."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from nicegui import ui

from gen.ui.examples import KINDS, PROMPT, STEPS, ExamplesJob, MethodRow, curve, example_file, method_rows
from gen.ui.job_view import JobProgressBar
from gen.ui.page import Page


def build(page: Page) -> None:
    """Fill the tab."""
    MethodsTab(page)


class MethodsTab:
    """The tab of one page."""

    def __init__(self, page: Page):
        self.page, self.kind, self.words = page, "sampler", ""
        self.rows: list[MethodRow] = []
        self.places: dict[str, Any] = {}
        self.job: ExamplesJob | None = None
        self.filled: set[str] = set()
        with ui.element("main").classes("fs-gallery"):
            with ui.element("div").classes("fs-bar-top"):
                kind = ui.select(KINDS, label="Kind of method", value=self.kind, on_change=self._to_kind)
                kind.props('outlined dense stack-label options-dense data-field="methods.kind"').style("min-width: 160px")
                search = ui.input(placeholder="Search", on_change=self._search)
                search.props('outlined dense clearable aria-label="Search methods" data-field="methods.search"')
                self.draw_button = ui.button("Draw a picture of each", icon="image", on_click=self.draw, color=None)
                self.draw_button.props('flat dense data-action="draw-examples"')
            self.about = ui.label("").classes("fs-about")
            self.progress = JobProgressBar(page, name="examples")
            self.list = ui.element("div").classes("fs-methods").props('role="list"')
        page.on("ready", self.read)
        page.on("jobs", self.update)
        self.read()

    def read(self) -> None:
        """The registries, once they are there."""
        if self.page.studio.catalogue is not None and not self.rows:
            self.rows = method_rows()
        self.fill()

    def _to_kind(self, event: Any) -> None:
        self.kind = event.value
        self.fill()

    def _search(self, event: Any) -> None:
        self.words = (event.value or "").lower()
        self.fill()

    def shown(self) -> list[MethodRow]:
        """Those of the kind that hold every word."""
        rows = [row for row in self.rows if row.kind == self.kind]
        return [row for row in rows if all(word in f"{row.name} {row.about}".lower() for word in self.words.split())]

    def fill(self) -> None:
        """The list."""
        rows = self.shown()
        said = f"{len(rows)} of them. Pictures: {PROMPT!r}, seed 7, {STEPS} steps of the default model; they are kept."
        self.about.set_text(said if self.rows else "The registries are being read …")
        self.list.clear()
        self.places, self.filled = {}, set()
        with self.list:
            for row in rows:
                self._row(row)

    def _row(self, row: MethodRow) -> None:
        with ui.element("div").classes("fs-method").props('role="listitem"') as item:
            item.props["data-method"] = row.name
            with ui.element("div").classes("fs-cell") as place:
                if row.kind == "schedule" and row.call is not None:
                    _curve(row.name)
            self.places[row.name] = place
            with ui.element("div").classes("fs-what"):
                ui.label(row.name).classes("fs-method-name")
                ui.label(f"{row.about[:1].upper()}{row.about[1:]}.").classes("fs-method-about")
                with ui.element("div").classes("fs-hint").style("text-align: left"):
                    ui.label(row.cost)
                    if row.source:
                        link = ui.link(f"arXiv {row.source}", f"https://arxiv.org/abs/{row.source}", new_tab=True)
                        link.props('rel="noopener noreferrer"')
                use = ui.button("Use", on_click=lambda: self.use(row), color=None)
                use.props("flat dense size=sm").props["aria-label"] = f"Use {row.name}"
        if row.kind != "schedule" and row.call is not None and (file := example_file(self.page.studio, row.call)).is_file():
            self._picture(row.name, file)

    def _picture(self, name: str, file: Path) -> None:
        if name in self.filled or name not in self.places:
            return
        self.filled.add(name)
        with self.places[name]:
            image = ui.element("img")
            image.props["src"] = "data:image/webp;base64," + base64.b64encode(file.read_bytes()).decode()
            image.props["alt"] = f"{PROMPT}, by {name}"

    def use(self, row: MethodRow) -> None:
        """Choose it on the tab "Draw"."""
        settings = self.page.settings
        if row.kind == "cache":
            settings.caches = [row.name]
        elif row.kind == "guidance" and row.cost.startswith("goes"):
            settings.modifiers = [*(one for one in settings.modifiers if one != row.name), row.name]
        else:
            setattr(settings, {"guidance": "rule"}.get(row.kind, row.kind), row.name)
        self.page.tell("settings")
        self.page.say(f"{row.name} is chosen on the tab Draw.", "positive")

    def draw(self) -> None:
        """Pictures of those that are listed."""
        if self.kind == "schedule":
            self.page.say("A schedule is shown as its curve: log-SNR over 20 steps.")
            return
        self.job = ExamplesJob(tuple(row for row in self.shown() if row.call is not None))
        try:
            self.progress.follow(self.page.studio.jobs.add(self.job, f"Pictures of {len(self.job.rows)} methods"))
        except ValueError as error:
            self.page.say(str(error), "negative")

    def update(self) -> None:
        """Something of the queue changed."""
        if self.job is None:
            return
        self.progress.show()
        for name, file in list(self.job.made.items()):
            self._picture(name, file)


def _curve(name: str) -> None:
    try:
        path = curve(name)
    except ValueError:
        return  # it needs options, or a model's own numbers
    drawn = f'<svg viewBox="0 0 128 128" aria-hidden="true"><path d="{path}"/></svg>'
    ui.html(drawn, sanitize=False).classes("fs-curve")
