"""Messages at the lower edge of the page, one above the other; a screen reader reads them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

SHOWN = 6.0  # seconds that a message stays
MOST = 4  # messages at a time


class Toasts:
    """Where messages are shown."""

    def __init__(self) -> None:
        self.place = ui.element("div").classes("fs-toasts").props('aria-live="polite" data-toasts')
        self.shown: list[Any] = []

    def add(self, text: str, kind: str = "info", action: str = "", do: Callable[[], Any] | None = None) -> None:
        """Show a message; the oldest goes if there are too many."""
        while len(self.shown) >= MOST:
            self.remove(self.shown[0])

        def act() -> None:
            self.remove(toast)
            if do is not None:
                do()

        with self.place, ui.element("div").classes(f"fs-toast fs-{kind}") as toast:
            toast.props(f'data-kind="{kind}" role="{"alert" if kind == "negative" else "status"}"')
            ui.label(text)
            if do is not None:
                button = ui.button(action, on_click=act, color=None)
                button.props(f'flat dense data-action="{action.lower()}"')
            close = ui.button(icon="close", on_click=lambda: self.remove(toast), color=None)
            close.props('flat dense round size=sm aria-label="Close"')
            if kind != "negative":
                ui.timer(SHOWN if do is None else 2 * SHOWN, lambda: self.remove(toast), once=True)
        self.shown.append(toast)

    def remove(self, toast: Any) -> None:
        """Take a message away, if it is still there."""
        if toast in self.shown:
            self.shown.remove(toast)
            toast.delete()
