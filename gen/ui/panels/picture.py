"""A picture to start from, and one to follow through a ControlNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nicegui import ui

from gen.calls.errors import sentence
from gen.ui import fields
from gen.ui.gallery import MOST_GIVEN
from gen.ui.page import Page

TITLE = "From a picture"


def build(page: Page) -> None:
    """The section's fields; those of ControlNets where there are some among the models."""
    _given(page, "image", "A picture to start from")
    fields.number(page, "strength", "How much of it is made anew", "0.8", step=0.05)
    networks = {path: name for name, path in page.studio.controlnets().items()}
    if networks:
        fields.choice(page, "controlnet", "ControlNet", {"": "none", **networks}, search=False)
        _given(page, "control", "A picture to follow")
        fields.number(page, "control_weight", "How strongly", "1", step=0.1)


def _given(page: Page, name: str, label: str) -> None:
    """A picture that the user gives: chosen or dropped on the box, kept beside the gallery."""
    with ui.element("div").classes("fs-row"):
        said = ui.label("").classes("fs-about")
        away = (
            ui.button(icon="close", on_click=lambda: put(""), color=None).props("flat dense round size=sm").classes("fs-fixed")
        )
        away.props["aria-label"] = f"Without {label.lower()}"
    box = ui.upload(label=label, auto_upload=True, max_files=100, max_file_size=MOST_GIVEN).props(
        'flat bordered accept="image/*"'
    )
    box.classes("fs-upload").props(f'data-field="{name}"')

    def put(file: str) -> None:
        setattr(page.settings, name, file)
        show()

    def show() -> None:
        file = getattr(page.settings, name)
        said.set_text(f"{label}: {Path(file).name[:12]}" if file else "")
        said.set_visibility(bool(file))
        away.set_visibility(bool(file))

    async def uploaded(event: Any) -> None:
        from nicegui import run

        try:
            put(str(await run.io_bound(page.studio.gallery.keep_given, await event.file.read())))
        except Exception as error:
            page.say(sentence(error), "negative")
        box.reset()

    box.on_upload(uploaded)
    page.on("settings", show)
    show()
