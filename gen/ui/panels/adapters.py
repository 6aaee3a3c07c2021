"""LoRAs, their relatives and learned words: which act, how strongly, and how several are composed."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from gen.ui.fields import DENSE, choices_of, not_listed, tell_unread
from gen.ui.page import Page
from gen.ui.panels.frame import method_options

TITLE = "LoRAs and embeddings"


def build(page: Page) -> None:
    """A row for each that acts, and a list to add from."""
    names: dict[str, str] = {}
    hint = ui.label("").classes("fs-about")
    chooser = ui.element("div").classes("fs-form")
    rows = ui.element("div").classes("fs-form")
    several = ui.element("div").classes("fs-form")

    def read() -> bool:
        """What is in the folder now; is it another than before?"""
        found, before = {path: name for name, path in page.studio.adapters().items()}, dict(names)
        names.clear()
        names.update(found)
        folder = page.studio.loras
        none = f"There are no .safetensors files in {folder}. " if folder.is_dir() else ""
        where = "" if page.studio.lora_dir else "Begin with `fewstep ui --lora-dir FOLDER` to choose from a folder of files. "
        hint.set_text(f"{none}{where}One that is taught on the tab Teach is here too.")
        hint.set_visibility(not names)
        return found != before

    def choose() -> None:
        """The list anew, without those that act already: what was typed to find one is gone."""
        chooser.clear()
        rest = {file: name for file, name in names.items() if file not in page.settings.adapters}
        chooser.set_visibility(bool(names))
        with chooser:
            add = ui.select(rest, label="Add", with_input=True, on_change=added)
            add.props(f'{DENSE} options-dense data-field=adapters aria-label="Add a LoRA or embedding"')
            add.on("typed", lambda event: typed(add, str(event.args).strip()))

    def show() -> None:
        choose()
        rows.clear()
        several.clear()
        with rows:
            for file in list(page.settings.adapters):
                _row(page, file, names.get(file, file), show)
        catalogue = page.studio.catalogue
        if catalogue is not None and len(page.settings.adapters) > 1:
            with several:
                chosen = page.own.choice("composition", "Together by", choices_of(catalogue.compositions, "merge"))
                method_options(page, "composition_options", (chosen,))

    def added(event: Any) -> None:
        if event.value:
            page.settings.adapters.setdefault(event.value, 1.0)
            show()

    def typed(add: Any, text: str) -> None:
        file = next((file for file, name in add.options.items() if name.lower() == text.lower()), None)
        if file is not None:
            add.set_value(file)
        elif text:
            add.error = not_listed(text, add.options.values())

    page.on("settings", read)
    page.on("settings", show)
    page.on("adapters", lambda: show() if read() else None)
    page.on("ready", show)
    read()
    show()


def _row(page: Page, file: str, name: str, show: Any) -> None:
    def weigh(value: float | None) -> None:
        page.settings.adapters[file] = 1.0 if value is None else value

    def leave() -> None:
        page.settings.adapters.pop(file, None)
        show()

    with ui.element("div").classes("fs-row"):
        weight = ui.number(name, value=page.settings.adapters[file], step=0.1, placeholder="1")
        weight.on_value_change(lambda event: weigh(event.value))
        tell_unread(weight, weigh)
        weight.props(f'{DENSE} data-adapter="{name}"')
        away = ui.button(icon="close", on_click=leave, color=None).props("flat dense round size=sm").classes("fs-fixed")
        away.props["aria-label"] = f"Without {name}"
