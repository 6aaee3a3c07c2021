"""How strongly a prompt guides, by which rule, and what goes around that rule."""

from __future__ import annotations

from nicegui import ui

from gen.ui import fields
from gen.ui.page import Page

TITLE = "Guidance"


def build(page: Page) -> None:
    """The section's fields; rules once the registries are read."""
    fields.number(page, "scale", "Guidance scale", "model's", step=0.5)
    place = ui.element("div").classes("fs-form")

    def fill() -> None:
        catalogue = page.studio.catalogue
        place.clear()
        if catalogue is None:
            return
        modifiers = {name: name for name, one in catalogue.guidance.items() if one.group != "a rule"}
        rules = {name: one for name, one in catalogue.guidance.items() if one.group == "a rule"}
        with place:
            rule = fields.choice(page, "rule", "Rule", fields.choices_of(rules))
            others = fields.choice(page, "modifiers", "Around it", modifiers, several=True)
            describe = fields.about(lambda: page.settings.methods(catalogue)["guidance_options"])
            options = ui.element("div").classes("fs-form")
            with ui.element("div").classes("fs-row"):
                fields.number(page, "interval_low", "From log-SNR", "lowest", step=0.5)
                fields.number(page, "interval_high", "To log-SNR", "highest", step=0.5)

        def show() -> None:
            describe()
            options.clear()
            with options:
                fields.options(page, "guidance_options", page.settings.methods(catalogue)["guidance_options"])

        rule.on_value_change(show)
        others.on_value_change(show)
        page.on("settings", show)
        show()

    page.on("ready", fill)
    fill()
