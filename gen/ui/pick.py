"""Choosing a picture to work on: dropped, from a file, the one that was made last, or one of the gallery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import run, ui

from gen.calls.errors import sentence
from gen.ui.page import Page
from gen.ui.stage import thumb
from gen.ui.uploads import picture_upload

OFFERED = 120  # pictures of the gallery to choose from


class PicturePick:
    """A box to drop a picture on, and two buttons.

    chosen: told of the file, which is a copy among the pictures that were given.
    """

    def __init__(self, page: Page, name: str, chosen: Callable[[Path], Any]):
        self.page, self.chosen = page, chosen
        self.box = picture_upload(page, "Drop a picture, or", self._uploaded).props(f'data-upload="{name}"')
        with ui.element("div").classes("fs-actions"):
            last = ui.button("Last picture", icon="history", on_click=self._last, color=None)
            last.props(f'flat dense size=13px data-action="{name}-last"')
            other = ui.button("From the gallery", icon="grid_view", on_click=self._gallery, color=None)
            other.props(f'flat dense size=13px data-action="{name}-gallery"')

    async def _uploaded(self, _: str, data: bytes) -> None:
        await self.take(data)

    async def take(self, data: bytes) -> None:
        """Keep a picture's bytes and hand its file on."""
        kept = await run.io_bound(self.page.studio.gallery.keep_given, data)
        if kept is not None:  # as it is while the program ends
            self.chosen(kept)

    async def take_name(self, name: str) -> None:
        """A picture of the gallery."""
        try:
            await self.take(self.page.studio.gallery.path(name).read_bytes())
        except Exception as error:
            self.page.say(sentence(error), "negative")

    async def _last(self) -> None:
        entries = self.page.studio.gallery.entries()
        name = self.page.shown or (entries[0].name if entries else "")
        if not name:
            self.page.say("No picture was made yet; draw one first.")
            return
        await self.take_name(name)

    def _gallery(self) -> None:
        entries = self.page.studio.gallery.entries()[:OFFERED]
        if not entries:
            self.page.say("The gallery has no pictures yet; draw one first.")
            return
        with ui.dialog() as dialog, ui.card().classes("fs-sheet").props("data-pick"):
            ui.html("Choose a picture", tag="h2", sanitize=False).classes("fs-title")
            with ui.element("div").classes("fs-grid"):
                for entry in entries:
                    thumb(self.page.studio.gallery, entry.name, lambda name=entry.name: self._take_and_close(name, dialog))
        dialog.on("hide", dialog.delete)
        dialog.open()

    async def _take_and_close(self, name: str, dialog: Any) -> None:
        dialog.close()
        await self.take_name(name)
