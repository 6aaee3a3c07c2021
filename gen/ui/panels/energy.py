"""Guidance by an energy: a colour, a brightness, a place, what a judge recognises."""

from __future__ import annotations

from nicegui import ui

from gen.ui import fields
from gen.ui.page import Page

TITLE = "Energy"


def build(page: Page) -> None:
    """The section's fields, once the registries are read."""
    place = ui.element("div").classes("fs-form")

    def fill() -> None:
        catalogue = page.studio.catalogue
        place.clear()
        if catalogue is None:
            return
        with place:
            guide = fields.choice(page, "guide", "Guide to", fields.choices_of(catalogue.energies, "nothing"), search=False)
            describe = fields.about(lambda: page.settings.methods(catalogue)["guide_options"][:1])
            options = ui.element("div").classes("fs-form")
            how = ui.element("div").classes("fs-form")
            with how:
                fields.choice(page, "guide_method", "By", fields.choices_of(catalogue.methods, "the energy's own way"))
                fields.number(page, "guide_strength", "Strength", "the method's", step=0.5)

        def show() -> None:
            describe()
            how.set_visibility(bool(page.settings.guide))
            options.clear()
            with options:
                fields.options(page, "guide_options", page.settings.methods(catalogue)["guide_options"][:1])

        guide.on_value_change(show)
        page.on("settings", show)
        show()

    page.on("ready", fill)
    fill()
