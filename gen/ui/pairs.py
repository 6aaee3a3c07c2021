"""Left or right: two pictures of one prompt, of which a click says the better one; what is chosen is kept as a preference."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from gen.ui.checks import FieldError
from gen.ui.dialogs import keep_preference
from gen.ui.fields import FieldSet
from gen.ui.job_view import JobProgressBar, primary
from gen.ui.jobs import DrawJob
from gen.ui.page import Page
from gen.ui.preferences import PairSettings, Preference


class PairView:
    """Of one page: the form is built where `build_form` is called, the two pictures where the view is made."""

    def __init__(self, page: Page):
        self.page, self.settings = page, PairSettings()
        self.own = FieldSet(page, "pairs", self.settings)
        self.waiting: list[DrawJob] = []
        self.pair: tuple[str, str, str] | None = None  # prompt, left, right
        self.progress = JobProgressBar(page, name="pairs")
        self.said = ui.label("").classes("fs-about").props('role="status" data-pair-said')
        with ui.element("div").classes("fs-pair"):
            self.images = [self._side(0), self._side(1)]
        with ui.element("div").classes("fs-actions fs-choose"):
            self.buttons = [
                self._button("Left is better", "arrow_back", "left-better", lambda: self.choose(0)),
                self._button("Neither", "remove", "neither", self.advance),
                self._button("Right is better", "arrow_forward", "right-better", lambda: self.choose(1)),
            ]
        page.on("jobs", self.update)
        self.show()

    def build_form(self) -> None:
        """Prompts, how many pairs, and the button that draws them."""
        self.own.text("prompt", "Prompts, one a line", "that of Draw", rows=2)
        self.own.number("pairs", "Pairs", "5")
        primary("Draw pairs", "draw-pairs", self.draw)
        ui.label("Click the better one, or press the arrows left and right; down for neither.").classes("fs-hint")

    def _side(self, place: int) -> Any:
        with ui.element("button").classes("fs-frame fs-choice").on("click", lambda: self.choose(place)) as button:
            button.props(f'type=button data-side="{place}"')
            return ui.element("img").props('alt=""')

    def _button(self, label: str, icon: str, action: str, do: Any) -> Any:
        return ui.button(label, icon=icon, on_click=do, color=None).props(f'flat dense size=13px data-action="{action}"')

    def draw(self) -> None:
        """Put the pairs into the queue."""
        self.own.right()
        page = self.page
        if (base := page.call_of_draw()) is None:
            return
        try:
            for call in self.settings.to_calls(base):
                job = page.studio.submit(call, f"Two of: {call.arguments['prompt']}", page.settings.kind())
                self.waiting.append(page.begun(job, self.own))
        except FieldError as error:
            self.own.wrong(error.field, str(error))
        except ValueError as error:
            page.say(str(error), "negative")
        self.update()

    def update(self) -> None:
        """Something of the queue changed: the next pair may be there."""
        with self.page.studio.jobs.reading():
            self.waiting = [job for job in self.waiting if not job.over or len(job.pictures) == 2]
            done = [job for job in self.waiting if job.over]
            under_way = next((job for job in self.waiting if not job.over), None)
        if under_way is not None:
            self.progress.follow(under_way)
        else:
            self.progress.show()
        if self.pair is None and done:
            job = done[0]
            self.waiting.remove(job)
            self.pair = (str(job.call.arguments.get("prompt", "")), *job.pictures)  # type: ignore[assignment]
        self.show()

    def show(self) -> None:
        """The pair, and how many choices there are."""
        pair, gallery = self.pair, self.page.studio.gallery
        for place, image in enumerate(self.images):
            image.props["src"] = gallery.address(pair[place + 1]) if pair else ""
            image.props["alt"] = ("left", "right")[place] if pair else ""
            image.update()
        for button in self.buttons:
            button.set_enabled(pair is not None)
        count = self.page.studio.preferences.count()
        kept = f"{count} choice{'s' * (count != 1)} in {self.page.studio.preferences.file.name}."
        self.said.set_text(f"{pair[0]}: which is better? {kept}" if pair else kept if count else "Pairs appear here.")

    def choose(self, place: int) -> None:
        """The left (0) or the right picture (1) is the better one."""
        if self.pair is None:
            return
        prompt, *names = self.pair
        keep_preference(self.page, Preference(prompt, names[place], names[1 - place]))
        self.advance()

    def advance(self) -> None:
        """The next pair."""
        self.pair = None
        self.update()
