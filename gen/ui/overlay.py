"""Dialogs over the page."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from gen.ui.page import Page


def overlay(page: Page) -> Any:
    """A dialog that stands on the page itself, not in what opened it, and is gone when it is closed."""
    with page.root:
        dialog = ui.dialog()
    dialog.on("hide", dialog.delete)
    return dialog


def closing(dialog: Any) -> None:
    """A button that closes it."""
    button = ui.button(icon="close", on_click=dialog.close, color=None).classes("fs-fixed")
    button.props('flat dense round aria-label="Close"')
