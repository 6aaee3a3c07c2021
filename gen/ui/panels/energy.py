"""Guidance by an energy: a colour, a brightness, a place, what a judge recognises."""

from __future__ import annotations

from nicegui import ui

from gen.ui.fields import choices_of
from gen.ui.forms import Catalogue
from gen.ui.page import Page
from gen.ui.panels.frame import method_options, once_ready

TITLE = "Energy"


def build(page: Page) -> None:
    """The section's fields."""

    def fill(catalogue: Catalogue) -> None:
        guide = page.own.choice("guide", "Guide to", choices_of(catalogue.energies, "nothing"), search=False)
        how = ui.element("div").classes("fs-form")
        with how:
            method = page.own.choice("guide_method", "By", choices_of(catalogue.methods, "the energy's own way"))
            page.own.number("guide_strength", "Strength", "the method's", step=0.5)
        method_options(page, "guide_options", (guide, method))

        def show() -> None:
            how.set_visibility(bool(page.settings.guide))

        guide.on_value_change(show)
        page.on("settings", show)
        show()

    once_ready(page, fill)
