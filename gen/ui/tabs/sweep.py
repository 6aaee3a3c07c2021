"""The tab "Compare": two or three settings against one another, on a grid whose cells fill as they are drawn."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from nicegui import ui

from gen.calls.call import Call
from gen.calls.errors import sentence
from gen.ui import dialogs
from gen.ui.checks import FieldError
from gen.ui.code_dialog import CodePart, show_code
from gen.ui.fields import FieldSet
from gen.ui.job_view import JobProgressBar, primary
from gen.ui.page import Page
from gen.ui.pairs import PairView
from gen.ui.sweeps import SweepJob, SweepSettings

READY = {  # button -> the axes that it fills in
    "Samplers by steps": ("steps=4,8,20", "sampler=euler,heun,dpmpp_2m,unipc", ""),
    "Guidance by steps": ("steps=8,20", "guidance-scale=1,3,5,8", ""),
    "Guidance rules": ("guidance=cfg,apg,cfg_zero", "guidance-scale=3,6", ""),
    "Seeds": ("seed=0-5", "", ""),
    "Words": ("prompt:red=red,blue,green", "seed=0-2", ""),
}
HINT = "steps=4,8,20; seed=0-3; guidance-scale=1-7:2; lora:NAME=0,0.5,1; prompt:cat=dog,horse; sampler-option:eta=0,1"


def build(page: Page) -> None:
    """Fill the tab."""
    SweepTab(page)


class SweepTab:
    """The tab of one page."""

    def __init__(self, page: Page):
        self.page, self.settings = page, SweepSettings()
        self.own = FieldSet(page, "sweep", self.settings)
        self.job: SweepJob | None = None
        self.cells: dict[tuple[int, ...], Any] = {}
        self.filled: set[tuple[int, ...]] = set()
        with ui.element("main").classes("fs-draw fs-two"):
            with ui.element("section").classes("fs-prompt").props('aria-label="What to compare"'):
                with ui.element("div").classes("fs-modes fs-two-modes").props('role="group" aria-label="How to compare"'):
                    self.modes = {
                        name: ui.button(label, on_click=lambda name=name: self.to_mode(name), color=None)
                        for name, label in (("grid", "A grid"), ("pairs", "Left or right"))
                    }
                with ui.element("div").classes("fs-form") as self.grid_form:
                    self._build_form()
                with ui.element("div").classes("fs-form") as self.pair_form:
                    pass
            with ui.element("section").classes("fs-settings").props('aria-label="Ready-made comparisons"'):
                self._build_ready()
            with ui.element("section").classes("fs-stage").props('aria-label="Which of two is better"') as self.pair_stage:
                self.pairs = PairView(page)
            with self.pair_form:
                self.pairs.build_form()
            with ui.element("section").classes("fs-stage").props('aria-label="The grid"') as self.grid_stage:
                self.progress = JobProgressBar(page, name="sweep")
                self.grids = ui.element("div").classes("fs-grids").props("data-grids")
                with self.grids:
                    ui.label("Each combination of the values becomes a picture here, as soon as it is drawn.").classes(
                        "fs-about"
                    )
        page.on("jobs", self.update)
        self.to_mode("grid")

    def to_mode(self, name: str) -> None:
        """A grid, or pairs."""
        for other, button in self.modes.items():
            button.props(f'flat dense data-compare-mode="{other}" aria-pressed="{"true" if other == name else "false"}"')
        for part in (self.grid_form, self.ready, self.grid_stage):
            part.set_visibility(name == "grid")
        for part in (self.pair_form, self.pair_stage):
            part.set_visibility(name == "pairs")

    def _build_form(self) -> None:
        self.own.text("prompt", "Prompt, a sheet for each line", "a red heart", rows=2)
        self.own.text("across", "Across", "steps=4,8,20")
        self.own.text("down", "Down", "nothing")
        self.own.text("sheet", "A sheet for each of", "nothing")
        primary("Draw all", "draw-sweep", self.draw)
        with ui.element("div").classes("fs-row"):
            ui.label("Everything else as on the tab Draw").classes("fs-hint").style("text-align: left")
            code = ui.button("As code", icon="code", on_click=self.show_code, color=None).classes("fs-fixed")
            code.props('flat dense size=sm data-action="code-sweep"')

    def _build_ready(self) -> None:
        with ui.element("div").classes("fs-form fs-edit-form") as self.ready:
            ui.html("Begin with", tag="h2", sanitize=False).classes("fs-title")
            with ui.element("div").classes("fs-actions"):
                for label, axes in READY.items():
                    button = ui.button(label, on_click=lambda axes=axes: self.take(axes), color=None)
                    button.props(f'outline dense size=13px data-ready="{label}"')
            ui.label(f"A setting is written as its name and values: {HINT}.").classes("fs-about")

    def take(self, axes: tuple[str, str, str]) -> None:
        """Fill in a comparison."""
        for name, text in zip(("across", "down", "sheet"), axes, strict=True):
            self.own.set(name, text)

    # ---- drawing ----

    def to_job(self) -> SweepJob | None:
        """What is set; None where it cannot be, which is then said."""
        self.own.right()
        if (draw := self.page.call_of_draw()) is None:
            return None
        base = self.page.studio.settled(draw)
        try:
            base = Call(base.arguments, base.method, base.adapters, self.page.settings.model)
            return self.settings.to_job(base)
        except FieldError as error:
            self.own.wrong(error.field, str(error))
        except Exception as error:
            self.page.say(sentence(error), "negative")
        return None

    def draw(self) -> None:
        """Put it into the queue, and lay the grid out."""
        job = self.to_job()
        if job is None:
            return
        try:
            queued = self.page.begun(
                self.page.studio.jobs.add(job, f"Compare: {job.sweep.text}", self.page.settings.kind()), self.own
            )
        except ValueError as error:
            self.page.say(str(error), "negative")
            return
        self.job, self.cells, self.filled = job, {}, set()
        self.grids.clear()
        with self.grids:
            for title, across, down, cells in job.grids():
                self._grid(title, across, down, cells)
        self.progress.follow(queued)

    def _grid(self, title: str, across: list[str], down: list[str], cells: dict[tuple[int, int], Any]) -> None:
        with ui.element("div").classes("fs-sweep").props('role="table"') as table:
            table.props["aria-label"] = title or "Pictures"
            table.style(f"--columns: {len(across)}")
            ui.label(title).classes("fs-sweep-title")
            with ui.element("div").classes("fs-sweep-row").props('role="row"'):
                ui.label("").props('role="columnheader"')
                for caption in across:
                    ui.label(caption).classes("fs-hint").props('role="columnheader"')
            for row, caption in enumerate(down):
                with ui.element("div").classes("fs-sweep-row").props('role="row"'):
                    ui.label(caption).classes("fs-hint").props('role="rowheader"')
                    for column in range(len(across)):
                        cell = cells[column, row]
                        with ui.element("div").classes("fs-cell").props('role="cell"') as box:
                            pass
                        self.cells[cell.position] = box

    def update(self) -> None:
        """Something of the queue changed: cells that are drawn appear."""
        if self.job is None:
            return
        self.progress.show()
        for position, name in list(self.job.made.items()):
            if position in self.filled or position not in self.cells:
                continue
            self.filled.add(position)
            with self.cells[position]:
                button = ui.element("button").on("click", lambda name=name: dialogs.detail(self.page, name))
                button.props["type"], button.props["aria-label"] = "button", name
                with button:
                    image = ui.element("img")
                    image.props["src"], image.props["alt"] = f"/pictures/{quote(name)}", ""

    def show_code(self) -> None:
        """The comparison as Python and as a command line."""
        job = self.to_job()
        if job is None:
            return
        try:
            line = job.as_command()
        except ValueError as error:
            line = str(error)
        show_code(self.page, [CodePart("The same pictures", {"Python": job.as_python(), "Command line": line})])
