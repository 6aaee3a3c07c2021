"""The model, the size, how many."""

from __future__ import annotations

import secrets

from nicegui import ui

from gen.ui import fields
from gen.ui.page import Page

TITLE = "Picture"
OPEN = True


def build(page: Page) -> None:
    """The section's fields."""
    model = fields.choice(page, "model", "Model", page.studio.models(), search=False)
    with ui.element("div").classes("fs-row"):
        fields.number(page, "width", "Width", "model's", step=8)
        fields.number(page, "height", "Height", "model's", step=8)
        fields.number(page, "number", "Pictures", "1")
    with ui.element("div").classes("fs-row"):
        seed = fields.number(page, "seed", "Seed", "random")
        with ui.button(icon="casino", on_click=lambda: seed.set_value(secrets.randbelow(1 << 32)), color=None) as dice:
            dice.props('flat dense aria-label="A random seed that stays"').classes("fs-fixed")
            ui.tooltip("A random seed that stays")
        fields.number(page, "steps", "Steps", "model's")

    def show_usual() -> None:
        usual = page.studio.usual(page.settings.model)
        for name in ("width", "height", "steps", "scale"):
            if name in page.fields:
                page.fields[name].props["placeholder"] = usual.get(name, "model's")
                page.fields[name].update()

    model.on_value_change(show_usual)
    page.on("ready", show_usual)
    page.on("pictures", show_usual)  # a model may be open now
