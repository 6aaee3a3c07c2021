"""The model, the size, how many, and the files that they are kept in."""

from __future__ import annotations

import secrets
from typing import Any

from nicegui import ui

from gen.ui.page import Page

TITLE = "Picture"
OPEN = True
KINDS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WebP", ".avif": "AVIF"}


def build(page: Page) -> None:
    """The section's fields."""
    model = page.own.choice("model", "Model", page.studio.models(), search=False)
    with ui.element("div").classes("fs-row"):
        width = page.own.number("width", "Width", "model's", step=8)
        height = page.own.number("height", "Height", "model's", step=8)
        _shapes(page, width, height)
        page.own.number("number", "Pictures", "1")
    with ui.element("div").classes("fs-row"):
        seed = page.own.number("seed", "Seed", "random")
        with ui.button(icon="casino", on_click=lambda: seed.set_value(secrets.randbelow(1 << 32)), color=None) as dice:
            dice.props('flat dense aria-label="A random seed that stays"').classes("fs-fixed")
            ui.tooltip("A random seed that stays")
        page.own.number("steps", "Steps", "model's")
    with ui.element("div").classes("fs-row"):
        suffix = page.own.choice("suffix", "Kept as", KINDS)
        quality = page.own.number("quality", "Quality", "90")
        page.own.switch("transparent", "Transparent")

    def show_usual() -> None:
        usual = page.studio.usual(page.settings.model)
        for name in ("width", "height", "steps", "scale"):
            if name in page.fields:
                page.fields[name].props["placeholder"] = usual.get(name, "model's")
                page.fields[name].update()

    quality.bind_visibility_from(suffix, "value", backward=lambda value: value != ".png")
    model.on_value_change(show_usual)
    model.on_value_change(lambda: page.tell("model"))
    page.on("ready", show_usual)
    page.on("pictures", show_usual)  # a model may be open now


def _shapes(page: Page, width: Any, height: Any) -> None:
    """A button with a list of shapes, which fills both sides in."""
    with ui.button(icon="aspect_ratio", color=None) as button:
        button.props('flat dense aria-label="Choose a shape" data-action="shapes"').classes("fs-fixed")
        ui.tooltip("Choose a shape")
        menu = ui.menu()

    def take(size: tuple[int | None, int | None]) -> None:
        for field, side in zip((width, height), size, strict=True):
            field.set_value(side)

    def offer() -> None:
        sizes = page.studio.sizes(page.settings.model)
        menu.clear()
        with menu:
            ui.menu_item("The model's own" if sizes else "Known once the model is open", lambda: take((None, None)))
            for shape, size in sizes.items():
                ui.menu_item(f"{shape}, {size[0]} x {size[1]}", lambda size=size: take(size)).props(f'data-shape="{shape}"')

    menu.on("before-show", offer)
