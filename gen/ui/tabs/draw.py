"""The tab "Draw": the prompt, its settings, the picture in the middle, the queue."""

from __future__ import annotations

import importlib

from nicegui import ui

from gen.ui.code_dialog import settings_as_code
from gen.ui.page import Page
from gen.ui.panels import PANELS
from gen.ui.queue_list import build_queue
from gen.ui.stage import build_stage


def build(page: Page) -> None:
    """Fill the tab."""
    with ui.element("main").classes("fs-draw"):
        with ui.element("section").classes("fs-prompt").props('aria-label="What to draw"'):
            _prompt(page)
        with ui.element("section").classes("fs-settings").props('aria-label="Settings"'):
            _settings(page)
        with ui.element("section").classes("fs-stage").props('aria-label="Picture"'):
            build_stage(page)
        with ui.element("aside").classes("fs-side").props('aria-label="Queue"'):
            build_queue(page)


def _prompt(page: Page) -> None:
    prompt = page.own.text("prompt", "Prompt", "a red heart", rows=3)
    prompt.props("autofocus")
    page.own.text("negative", "Not in the picture", rows=1)
    draw = ui.button("Draw", on_click=lambda: page.draw()).props('unelevated data-action="draw"').classes("fs-go")
    with draw:
        ui.tooltip("Ctrl+Enter")
    with ui.element("div").classes("fs-row"):
        ui.label("Ctrl+Enter draws, Esc stops").classes("fs-hint").style("text-align: left")
        code = ui.button("As code", icon="code", on_click=lambda: settings_as_code(page), color=None).classes("fs-fixed")
        code.props('flat dense size=sm data-action="code"')


def _settings(page: Page) -> None:
    for name in PANELS:
        panel = importlib.import_module(f"gen.ui.panels.{name}")
        with ui.expansion(panel.TITLE, value=getattr(panel, "OPEN", False)).classes("fs-section w-full") as section:
            section.props(f'dense-toggle data-panel="{name}"')
            panel.build(page)
