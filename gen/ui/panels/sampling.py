"""The sampler, its schedule and their options, and the cache."""

from __future__ import annotations

from nicegui import ui

from gen.ui import fields
from gen.ui.page import Page

TITLE = "Sampler"


def build(page: Page) -> None:
    """The section's fields, once the registries are read."""
    place = ui.element("div").classes("fs-form")

    def fill() -> None:
        catalogue = page.studio.catalogue
        place.clear()
        if catalogue is None:
            return
        with place:
            _part(page, "sampler", "Sampler", fields.choices_of(catalogue.samplers))
            _part(page, "schedule", "Schedule", fields.choices_of(catalogue.schedules))
            _part(page, "caches", "Cache", {name: name for name in catalogue.caches}, options="cache_options")
            fields.number(page, "at_once", "Pictures at once", "as many as fit")

    page.on("ready", fill)
    fill()


def _part(page: Page, name: str, label: str, names: dict[str, str], options: str = "") -> None:
    """A choice, what it is about, and its options."""
    options = options or f"{name}_options"
    chosen = fields.choice(page, name, label, names, several=name == "caches")
    describe = fields.about(lambda: page.settings.methods(page.studio.catalogue)[options])
    place = ui.element("div").classes("fs-form")

    def show() -> None:
        describe()
        place.clear()
        with place:
            fields.options(page, options, page.settings.methods(page.studio.catalogue)[options])

    chosen.on_value_change(show)
    page.on("settings", show)
    show()
