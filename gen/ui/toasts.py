"""Messages in a corner of the page: one of each kind, which the next one replaces; a screen reader reads them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

SHOWN = 6.0  # seconds that a message stays


class Toasts:
    """Where messages are shown. What is wrong, what can be undone, and what is merely told have a place each."""

    def __init__(self) -> None:
        self.place = ui.element("div").classes("fs-toasts").props('aria-live="polite" data-toasts')
        self.shown: dict[str, Any] = {}

    def add(self, text: str, kind: str = "info", action: str = "", do: Callable[[], Any] | None = None) -> None:
        """Show a message in the place of the last of its kind.

        kind: "negative" stays until it is closed or replaced, any other goes away by itself.
        action, do: a button in it.
        """
        place = "negative" if kind == "negative" else "action" if do is not None else "info"
        self.forget(place)

        def act() -> None:
            self._remove(place, toast)
            if do is not None:
                do()

        with self.place, ui.element("div").classes(f"fs-toast fs-{kind}") as toast:
            toast.props(f'data-kind="{kind}" role="{"alert" if kind == "negative" else "status"}"')
            ui.label(text)
            if do is not None:
                button = ui.button(action, on_click=act, color=None)
                button.props(f'flat dense data-action="{action.lower()}"')
            close = ui.button(icon="close", on_click=lambda: self._remove(place, toast), color=None)
            close.props('flat dense round size=sm aria-label="Close"')
            if kind != "negative":
                ui.timer(SHOWN if do is None else 2 * SHOWN, lambda: self._remove(place, toast), once=True)
        self.shown[place] = toast

    def forget(self, place: str) -> None:
        """Take the message of a kind away, if there is one: "negative", "action" or "info"."""
        if place in self.shown:
            self._remove(place, self.shown[place])

    def _remove(self, place: str, toast: Any) -> None:
        if self.shown.get(place) is toast:
            self.shown.pop(place).delete()
