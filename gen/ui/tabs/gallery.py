"""The tab "Gallery": all pictures of the folder, newest first."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from gen.ui import dialogs
from gen.ui.page import Page
from gen.ui.stage import thumb

PORTION = 60  # pictures that are shown at first, and with every "More"


def build(page: Page) -> None:
    """Fill the tab."""
    state: dict[str, Any] = {"shown": PORTION, "words": "", "compare": None}
    with ui.element("main").classes("fs-gallery"):
        with ui.element("div").classes("fs-bar-top"):
            search = ui.input(placeholder="Search names").props('outlined dense clearable aria-label="Search names"')
            count = ui.label("").classes("fs-about").tooltip(str(page.studio.gallery.folder))
            compare = (
                ui.button("Compare two", icon="compare", color=None)
                .props('flat dense data-action="compare"')
                .classes("fs-right")
            )
            read = ui.button(
                "Read a picture", icon="upload_file", on_click=lambda: page.reading.run_method("pickFiles"), color=None
            )
            read.props('flat dense data-action="read"')
        grid = ui.element("div").classes("fs-grid").props('role="group" aria-label="Pictures"')
        more = ui.button("More", on_click=lambda: enlarge(), color=None).props("flat")

    drawn: list[tuple[str, int]] = []

    def fill() -> None:
        words = str(state["words"] or "").lower().split()
        entries = [one for one in page.studio.gallery.entries() if all(word in one.name.lower() for word in words)]
        count.set_text(f"{len(entries)} picture{'s' * (len(entries) != 1)} in {page.studio.gallery.folder.name}")
        names = [(entry.name, entry.changed) for entry in entries[: int(state["shown"] or 0)]]
        if names != drawn:  # else what is about to be clicked would be made anew
            drawn[:] = names
            grid.clear()
            with grid:
                for name, _ in names:
                    thumb(page.studio.gallery, name, lambda name=name: chosen(name))
        more.set_visibility(len(entries) > int(state["shown"] or 0))

    def chosen(name: str) -> None:
        waiting = state["compare"]
        if waiting is None:
            dialogs.detail(page, name)
        elif waiting == "":
            state["compare"] = name
            count.set_text("Choose the other picture.")
        else:
            state["compare"] = None
            compare.classes(remove="fs-on")
            fill()
            dialogs.compare(page, str(waiting), name)

    def begin() -> None:
        state["compare"] = "" if state["compare"] is None else None
        compare.classes(
            add="fs-on" if state["compare"] is not None else "", remove="" if state["compare"] is not None else "fs-on"
        )
        fill()
        if state["compare"] is not None:
            count.set_text("Choose the first of two pictures.")

    def enlarge() -> None:
        state["shown"] = int(state["shown"] or 0) + PORTION
        fill()

    def searched(event: Any) -> None:
        state["words"], state["shown"] = event.value, PORTION
        fill()

    compare.on_click(begin)
    search.on_value_change(searched)
    page.on("pictures", fill)
    fill()
