"""What sections of settings have in common: they wait for the registries, and show the options of the methods chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui

from gen.ui.fields import about
from gen.ui.forms import Catalogue, MethodChoice
from gen.ui.page import Page


def once_ready(page: Page, fill: Callable[[Catalogue], None]) -> None:
    """Fill a part of the page once the registries are read."""
    place = ui.element("div").classes("fs-form")
    filled: list[Catalogue] = []

    def show() -> None:
        if page.studio.catalogue is not None and not filled:
            filled.append(page.studio.catalogue)
            with place:
                fill(page.studio.catalogue)

    page.on("ready", show)
    show()


def method_options(page: Page, name: str, of: Any, most: int | None = None) -> Callable[[], None]:
    """A line about the methods whose options are `name` of the settings, and a field for each option.

    of: the fields that choose them. most: how many methods are shown, of several; None for all.
    Returns what shows them anew.
    """

    def methods() -> list[MethodChoice]:
        return page.settings.methods(page.studio.catalogue)[name][:most]

    describe = about(methods)
    place = ui.element("div").classes("fs-form")

    def show() -> None:
        describe()
        place.clear()
        with place:
            page.own.options(name, methods())

    for field in of:
        field.on_value_change(show)
    page.on("settings", lambda: None if place.is_deleted else show())
    show()
    return show
