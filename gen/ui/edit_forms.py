"""The settings that each way to edit has, as fields on the tab "Edit"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nicegui import ui

from gen.ui.edits import CIRCULAR, SIDES, TASKS, RegionSettings
from gen.ui.painter import COLOURS

if TYPE_CHECKING:
    from gen.ui.tabs.edit import EditTab

MOST_REGIONS = 16


def build_form(tab: EditTab) -> None:
    """The fields of the mode that is chosen."""
    with ui.element("div").classes("fs-form fs-edit-form"):
        FORMS[tab.settings.mode](tab)


def _inpaint(tab: EditTab) -> None:
    tab.own.number("strength", "Strength: how far it may depart", "all of it inside a mask, else 0.8", step=0.05)


def _regions(tab: EditTab) -> None:
    own = tab.own
    rows = ui.element("div").classes("fs-form").props('role="group" aria-label="Regions"')

    def choose(number: int) -> None:
        tab.painter.show(active=number)
        for place, button in enumerate(dots):
            button.props(f'aria-pressed="{"true" if place == number else "false"}"')

    def fill(active: int) -> None:
        rows.clear()
        dots.clear()
        with rows:
            for number, region in enumerate(tab.settings.regions):
                _region_row(tab, number, region, dots, choose, remove)
        choose(active)
        tab.show()

    def add() -> None:
        if len(tab.settings.regions) < MOST_REGIONS:
            tab.settings.regions.append(RegionSettings())
        fill(len(tab.settings.regions) - 1)

    def remove(number: int) -> None:
        if len(tab.settings.regions) == 1:
            tab.page.say("One region is the least; without any, draw on the tab Draw.")
            return
        tab.settings.regions.pop(number)
        tab.painter.run_method("drop_layer", number)
        fill(0)

    dots: list[Any] = []
    button = ui.button("Add a region", icon="add", on_click=add, color=None)
    button.props('flat dense size=13px data-action="add-region"')
    with ui.element("div").classes("fs-row"):
        own.number("width", "Width", "256", step=8).on_value_change(lambda: tab.show())
        own.number("height", "Height", "256", step=8).on_value_change(lambda: tab.show())
    own.number("soft", "Edges fade over (pixels)", "0")
    own.number("bootstrap", "Alone up to log-SNR", "never: e.g. -0.7", step=0.1)
    own.switch("from_picture", "Begin with a picture", lambda: tab.show())
    own.number("strength", "How much of that is made anew", "0.8", step=0.05)
    fill(0)


def _region_row(tab: EditTab, number: int, region: RegionSettings, dots: list[Any], choose: Any, remove: Any) -> None:
    def said(event: Any) -> None:
        region_now = tab.settings.regions[number]
        region_now.prompt = event.value or ""
        field.error = None
        tab.show()

    with ui.element("div").classes("fs-row fs-region"):
        dot = ui.button(on_click=lambda: choose(number), color=None).props(f'flat round dense data-region="{number}"')
        dot.style(f"--colour: {COLOURS[number % len(COLOURS)]}").classes("fs-dot fs-fixed")
        dot.props["aria-label"] = f"Paint region {number + 1}"
        dots.append(dot)
        field = ui.input(placeholder=f"What region {number + 1} shows", value=region.prompt, on_change=said)
        field.props(f'outlined dense data-field="edit.region-{number}"').classes("fs-field").on("focus", lambda: choose(number))
        field.props["aria-label"] = f"Prompt of region {number + 1}"
        tab.own.know(f"region-{number}", field)
        away = (
            ui.button(icon="close", on_click=lambda: remove(number), color=None).props("flat dense round").classes("fs-fixed")
        )
        away.props["aria-label"] = f"Without region {number + 1}"


def _outpaint(tab: EditTab) -> None:
    with ui.element("div").classes("fs-pairs"):
        for side in SIDES:
            tab.own.number(side, f"{side.capitalize()} (pixels)", "0", step=8).on_value_change(lambda: tab.show())
    _windows(tab)
    tab.own.number("recurrence", "Passes of every step", "1")


def _panorama(tab: EditTab) -> None:
    with ui.element("div").classes("fs-row"):
        tab.own.number("width", "Width", str(4 * tab.tile), step=8).on_value_change(lambda: tab.show())
        tab.own.number("height", "Height", str(tab.tile), step=8).on_value_change(lambda: tab.show())
    tab.own.choice("circular", "Closes in a circle", CIRCULAR)
    _windows(tab)


def _upscale(tab: EditTab) -> None:
    with ui.element("div").classes("fs-row"):
        tab.own.number("scale", "Times as large", "2", step=0.5)
        tab.own.number("strength", "Strength", "0.4", step=0.05)
        tab.own.number("noise_level", "Noise (models that enlarge)", "0", step=0.05)
    _windows(tab)


def _restore(tab: EditTab) -> None:
    def chosen() -> None:
        fields.clear()
        with fields:
            if tab.settings.task == "superres":
                tab.own.number("factor", "Times as large", "4")
            elif tab.settings.task == "deblur":
                tab.own.number("radius", "Radius of the blur (pixels)", "2", step=0.5)
        tab.show()

    tab.own.choice("task", "What to mend", TASKS).on_value_change(chosen)
    fields = ui.element("div").classes("fs-form")
    tab.own.switch("simulate", "The picture is whole: damage it first")
    chosen()


def _windows(tab: EditTab) -> None:
    tab.own.number("stride", "From window to window (pixels)", "half a window", step=8)


FORMS = {
    "inpaint": _inpaint,
    "regions": _regions,
    "outpaint": _outpaint,
    "panorama": _panorama,
    "upscale": _upscale,
    "restore": _restore,
}
