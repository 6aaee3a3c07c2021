"""LoRAs, their relatives and learned words: which act, how strongly, and how several are composed."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from gen.ui import fields
from gen.ui.page import Page

TITLE = "LoRAs and embeddings"


def build(page: Page) -> None:
    """A row for each that acts, and a list to add from."""
    if page.studio.lora_dir is None:
        ui.label("Begin with `fewstep ui --lora-dir FOLDER` to choose from a folder of files.").classes("fs-about")
        return
    names = {path: name for name, path in page.studio.adapters().items()}
    if not names:
        ui.label(f"There are no .safetensors files in {page.studio.lora_dir}.").classes("fs-about")
        return
    chooser = ui.element("div").classes("fs-form")
    rows = ui.element("div").classes("fs-form")
    several = ui.element("div").classes("fs-form")

    def choose() -> None:
        """The list anew, without those that act already: what was typed to find one is gone."""
        chooser.clear()
        rest = {file: name for file, name in names.items() if file not in page.settings.adapters}
        with chooser:
            add = ui.select(rest, label="Add", with_input=True, on_change=added)
            add.props(f'{fields.DENSE} options-dense data-field=adapters aria-label="Add a LoRA or embedding"')

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
                chosen = fields.choice(page, "composition", "Together by", fields.choices_of(catalogue.compositions, "merge"))
                describe = fields.about(lambda: page.settings.methods(catalogue)["composition_options"])
                options = ui.element("div").classes("fs-form")

                def again() -> None:
                    describe()
                    options.clear()
                    with options:
                        fields.options(page, "composition_options", page.settings.methods(catalogue)["composition_options"])

                chosen.on_value_change(again)
                again()

    def added(event: Any) -> None:
        if event.value:
            page.settings.adapters.setdefault(event.value, 1.0)
            show()

    page.on("settings", show)
    page.on("ready", show)
    show()


def _row(page: Page, file: str, name: str, show: Any) -> None:
    def weigh(event: Any) -> None:
        page.settings.adapters[file] = 0.0 if event.value is None else event.value

    def leave() -> None:
        page.settings.adapters.pop(file, None)
        show()

    with ui.element("div").classes("fs-row"):
        weight = ui.number(name, value=page.settings.adapters[file], step=0.1, on_change=weigh)
        weight.props(f'{fields.DENSE} data-adapter="{name}"')
        away = ui.button(icon="close", on_click=leave, color=None).props("flat dense round size=sm").classes("fs-fixed")
        away.props["aria-label"] = f"Without {name}"
