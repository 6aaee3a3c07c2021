"""A second pass over the enlarged picture (hires), and pictures that differ a little from one seed's (variations)."""

from __future__ import annotations

from nicegui import ui

from gen.ui.page import Page

TITLE = "Hires and variations"
UPSCALERS = {"": "the picture", "latent": "the latent"}


def build(page: Page) -> None:
    """The section's fields."""
    with ui.element("div").classes("fs-row"):
        page.own.number("hires", "Times as large", "1", step=0.25)
        page.own.number("hires_strength", "Made anew", "0.5", step=0.05)
    with ui.element("div").classes("fs-row"):
        page.own.number("hires_steps", "Its steps", "as above")
        page.own.number("hires_window", "Window", "model's", step=8)
    page.own.choice("hires_upscaler", "What is enlarged", UPSCALERS)
    ui.label(
        "Hires draws the picture, enlarges it, and draws on: a share of it is made anew. The window is what the network sees "
        "at once, in pixels; 0 is all."
    ).classes("fs-about")
    with ui.element("div").classes("fs-row"):
        page.own.number("variation_seed", "Variation seed", "random")
        page.own.number("variation_strength", "How far", "0.2", step=0.05)
    ui.label("A variation turns the noise of the seed towards that of another: 0 is its own picture, 1 the other's.").classes(
        "fs-about"
    )
