"""What opens over the page: a picture's details, two pictures beside one another; and what is done with a picture."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from nicegui import run, ui

from gen.calls.call import Call
from gen.calls.errors import sentence
from gen.io.errors import RecipeError, printable
from gen.ui.code_dialog import picture_as_code
from gen.ui.overlay import closing, overlay
from gen.ui.page import Page
from gen.ui.preferences import Preference
from gen.ui.uploads import picture_upload

HIDDEN = ("machine", "batch", "model", "version", "adapter_files", "prompt_syntax", "batch_invariant")


# ---- a picture ----


def detail(page: Page, name: str) -> None:
    """A picture with its recipe and what can be done with it."""
    try:
        page.studio.gallery.path(name)
    except ValueError as error:
        page.say(str(error), "negative")
        page.tell("pictures")
        return

    def then_close(do: Callable[[Page, str], None]) -> Callable[[], None]:
        def done() -> None:
            do(page, name)
            dialog.close()

        return done

    with overlay(page) as dialog, ui.card().classes("fs-sheet").props("data-detail"):
        with ui.element("div").classes("fs-row").style("align-items: center"):
            ui.label(name).classes("fs-caption")
            closing(dialog)
        with ui.element("div").classes("fs-detail"):
            with ui.element("div").classes("fs-frame"):
                picture = ui.element("img")
                picture.props["src"], picture.props["alt"] = page.studio.gallery.address(name), name
            with ui.element("div").classes("fs-form"):
                _facts(page, name)
                said = ui.label("").classes("fs-about").props('role="status" data-replay')
                with ui.element("div").classes("fs-actions"):
                    for label, icon, action, do in (
                        ("Use settings", "tune", "d-use", then_close(use_settings)),
                        ("Again, another seed", "autorenew", "d-again", then_close(draw_again)),
                        ("Replay", "replay", "d-replay", lambda: _replay(page, name, said)),
                        ("As code", "code", "d-code", lambda: picture_as_code(page, name)),
                        ("Delete", "delete", "d-delete", then_close(delete)),
                    ):
                        ui.button(label, icon=icon, on_click=do, color=None).props(
                            f'flat dense size=13px data-action="{action}"'
                        )
    dialog.open()


def _facts(page: Page, name: str) -> None:
    """What a picture's recipe says, as a list."""
    try:
        recipe = page.studio.gallery.recipe(name)
    except (RecipeError, OSError, ValueError) as error:
        ui.label(sentence(error)).classes("fs-about")
        return
    rows = {key: value for key, value in recipe.named_values().items() if value not in ({}, (), "") and key not in HIDDEN}
    rows |= {"model": recipe.model.name, "device": f"{recipe.machine.device}, {recipe.machine.dtype}"}
    with ui.element("dl").classes("fs-facts"):
        for key, value in rows.items():
            with ui.element("dt"):
                ui.label(key.replace("num_inference_", "").replace("_", " "))
            with ui.element("dd"):
                ui.label(printable(_shown(value)))


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_shown, value)) if isinstance(value, tuple | list) else str(value)


async def _replay(page: Page, name: str, said: Any) -> None:
    said.set_text("Making it again …")
    try:
        said.set_text(await run.io_bound(page.studio.replay, name))
    except Exception as error:
        said.set_text(sentence(error))


def use_settings(page: Page, name: str) -> None:
    """The picture's settings into the fields."""
    try:
        call, missing = page.studio.call_of(name)
    except (RecipeError, ValueError, OSError) as error:
        page.say(sentence(error), "negative")
        return
    load(page, call, missing)


def load(page: Page, call: Call, missing: tuple[str, ...], source: str = "") -> None:
    """A call's settings into the fields, with a word on what is not among them."""
    page.own.right()
    page.settings.load(call)
    page.tell("settings")
    page.to_tab("draw")
    said = f"The settings{f' of {source}' if source else ''} are in the fields."
    page.say(f"{said} Not among them: {printable(', '.join(missing))}." if missing else said)


def draw_again(page: Page, name: str) -> None:
    """A picture's settings with another seed, into the queue."""
    try:
        call, missing = page.studio.call_of(name)
        page.begun(page.studio.submit(call.with_arguments(seed=None), kind=page.settings.kind()))
        if missing:
            page.say(f"Without {printable(', '.join(missing))}, which the recipe does not hold.", "warning")
    except (RecipeError, ValueError, OSError) as error:
        page.say(sentence(error), "negative")


def delete(page: Page, name: str) -> None:
    """Into the trash, with a button that brings it back."""
    try:
        kept = page.studio.gallery.delete(name)
    except (ValueError, OSError) as error:
        page.say(sentence(error), "negative")
        return
    page.tell("pictures")

    def undo() -> None:
        try:
            page.studio.gallery.restore(kept)
        except (ValueError, OSError) as error:
            page.say(sentence(error), "negative")
        page.tell("pictures")

    page.say(f"{name} is in the trash.", "info", "Undo", undo)


# ---- two pictures ----


def compare(page: Page, first: str, second: str) -> None:
    """Two pictures over one another with a slider, and beside one another."""
    with overlay(page) as dialog, ui.card().classes("fs-sheet").props("data-compare"):
        with ui.element("div").classes("fs-row").style("align-items: center"):
            ui.label(f"{first}  |  {second}").classes("fs-caption")
            beside = ui.switch("Side by side").classes("fs-fixed")
            closing(dialog)
        with ui.element("div").classes("fs-form").style("max-width: 640px; margin: 0 auto") as over:
            with ui.element("div").classes("fs-compare"):
                for name, kind in ((second, ""), (first, "fs-over")):
                    image = ui.element("img").classes(kind)
                    image.props["src"], image.props["alt"] = page.studio.gallery.address(name), name
            cut = ui.element("input").classes("fs-range")
            cut.props('type=range min=0 max=100 value=50 aria-label="Where the first picture ends"')
        with ui.element("div").classes("fs-pair") as pair:
            for name in (first, second):
                with ui.element("div").classes("fs-frame"):
                    image = ui.element("img")
                    image.props["src"], image.props["alt"] = page.studio.gallery.address(name), name
        if prompt := common_prompt(page, first, second):
            with ui.element("div").classes("fs-actions fs-choose"):
                for label, chosen, other in (("Left is better", first, second), ("Right is better", second, first)):
                    row = Preference(prompt, chosen, other)
                    better = ui.button(label, on_click=lambda row=row: keep_preference(page, row), color=None)
                    better.props(f'flat dense size=13px data-better="{label.split()[0].lower()}"')
        pair.bind_visibility_from(beside, "value")
        over.bind_visibility_from(beside, "value", backward=lambda value: not value)
    dialog.open()


def keep_preference(page: Page, row: Preference) -> None:
    """A row of the file, with a button that takes it back."""
    preferences = page.studio.preferences

    def undo() -> None:
        try:
            preferences.take_back(row)
            page.say("The choice is taken back.")
        except (ValueError, OSError) as error:
            page.say(sentence(error), "negative")

    try:
        preferences.add(row)
        page.say(f"Kept: {row.chosen} is better.", "positive", "Undo", undo)
    except (ValueError, OSError) as error:
        page.say(sentence(error), "negative")


def common_prompt(page: Page, first: str, second: str) -> str:
    """The prompt that two pictures of the gallery have in common, "" if there is none."""
    try:
        prompts = {page.studio.gallery.recipe(name).prompt for name in (first, second)}
    except (RecipeError, ValueError, OSError):
        return ""
    return str(prompts.pop()) if len(prompts) == 1 else ""


# ---- pictures from outside ----


def build_reading(page: Page) -> Any:
    """What takes pictures that are dropped anywhere on the page (`page.js`), or chosen by `run_method("pickFiles")`."""

    box = picture_upload(page, "", lambda name, data: read_dropped(page, name, data), several=True)
    return box.classes("fs-hidden").props('data-drop aria-hidden="true" tabindex=-1 inert')


async def read_dropped(page: Page, name: str, data: bytes) -> None:
    """A picture that was dropped on the page: its settings into the fields, or what to do with one that has none."""

    def read() -> tuple[Call, tuple[str, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dropped.png"
            path.write_bytes(data)
            try:
                return page.studio.call_of_file(path)
            except (RecipeError, ValueError) as error:
                raise ValueError(str(error).replace(str(path), printable(name))) from None

    try:
        call, missing = await run.io_bound(read) or (Call(), ())  # nothing while the program ends
    except Exception as error:
        page.say(sentence(error), "negative")
        return
    load(page, replace(call, model=page.studio.known_model(call.model)), missing, printable(name))
