"""A picture that is given for a setting: chosen or dropped on a box, kept beside the gallery, shown small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nicegui import run, ui

from gen.ui.uploads import picture_upload

if TYPE_CHECKING:
    from gen.ui.page import Page


class PictureField:
    """The box, as a field that can be wrong.

    name: in tests. read, write: of the setting, a file's path or "".
    """

    def __init__(self, page: Page, name: str, label: str, read: Callable[[], str], write: Callable[[str], Any]):
        self.page, self.read, self.write, self.props = page, read, write, {"label": label}
        with ui.element("div").classes("fs-row fs-given") as self.row:
            self.small = ui.element("img").props('alt=""')
            ui.label(label).classes("fs-about")
            away = ui.button(icon="close", on_click=lambda: self.put(""), color=None).props("flat dense round size=sm")
            away.classes("fs-fixed").props["aria-label"] = f"Without {label[:1].lower()}{label[1:]}"
        self.box = picture_upload(page, label, self._taken).props(f'data-field="{name}"')
        self.line = ui.label("").classes("fs-wrong").props('role="alert"')
        self.error = None
        self.show()

    async def _taken(self, _: str, data: bytes) -> None:
        kept = await run.io_bound(self.page.studio.gallery.keep_given, data)
        if kept is not None:  # as it is while the program ends
            self.put(str(kept))

    def put(self, file: str) -> None:
        """Another picture, or none."""
        self.write(file)
        self.error = None
        self.show()

    def show(self) -> None:
        """The picture as it is set."""
        if not self.is_deleted:
            file = self.read()
            self.row.set_visibility(bool(file))
            self.small.props["src"] = f"/given/{quote(Path(file).name)}" if file else ""
            self.small.update()

    # ---- as fields are ----

    @property
    def error(self) -> str | None:
        """What is wrong."""
        return self.line.text or None

    @error.setter
    def error(self, text: str | None) -> None:
        self.line.set_text(text or "")
        self.line.set_visibility(bool(text))

    @property
    def is_deleted(self) -> bool:
        """It is not on the page any more."""
        return bool(self.box.is_deleted)

    @property
    def parent_slot(self) -> Any:
        """Where it stands."""
        return self.box.parent_slot

    def run_method(self, name: str) -> None:
        """Nothing: there is no text to put the cursor into."""
