"""Pictures as programs: what the fields say, and what made the picture that is looked at, each under its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nicegui import ui

from gen.calls.call import Call
from gen.calls.command import as_command
from gen.calls.errors import sentence
from gen.calls.script import as_python
from gen.io.errors import RecipeError, printable
from gen.ui.checks import FieldError
from gen.ui.gallery import PNG, FileKind
from gen.ui.overlay import closing, overlay
from gen.ui.page import Page


@dataclass(frozen=True)
class CodePart:
    """Programs under a title. texts: by their language; said: what they lack."""

    title: str
    texts: dict[str, str]
    said: str = ""


def settings_as_code(page: Page) -> None:
    """What the fields of Draw say now, and beside it what made the picture on screen."""
    page.own.right()
    parts = []
    try:
        call, kind = page.settings.to_call(page.studio.catalogue), page.settings.kind()
        said = (
            ""
            if call.arguments.get("seed") is not None
            else "No seed is set: this one was drawn for the code, and a picture that is drawn now has another."
        )
        parts.append(part_of(page, "What the fields say now", page.studio.settled(call), kind=kind, said=said))
    except FieldError as error:
        page.own.wrong(error.field, str(error))
        return
    except ValueError as error:
        page.show_error(str(error))
        return
    if page.shown:
        try:
            made, missing = page.studio.call_of(page.shown)
            parts.append(part_of(page, f"The picture on screen: {page.shown}", made, page.shown, missing))
        except (RecipeError, ValueError, OSError) as error:
            parts.append(CodePart(f"The picture on screen: {page.shown}", {}, sentence(error)))
    show_code(page, parts)


def picture_as_code(page: Page, name: str) -> None:
    """What made a picture."""
    try:
        call, missing = page.studio.call_of(name)
    except (RecipeError, ValueError, OSError) as error:
        page.say(sentence(error), "negative")
        return
    title = f"{name}, to the byte" if not missing else f"Nearly {name}"
    show_code(page, [part_of(page, title, call, name, missing)])


def part_of(
    page: Page, title: str, call: Call, output: str = "", missing: tuple[str, ...] = (), kind: FileKind = PNG, said: str = ""
) -> CodePart:
    """A call in both languages. output: its file, "picture" of a kind if none is named."""
    output = output or f"picture{kind.suffix}"
    energies = page.studio.energies.keys() & {call.arguments.get("guide")} != set()
    texts = {"Python": as_python(call, output, energies, kind.quality)}
    try:
        texts["Command line"] = as_command(call, output, kind.quality)
    except ValueError as error:
        texts["Command line"] = str(error)
    lacking = f"The recipe does not hold {printable(', '.join(missing))}." if missing else ""
    return CodePart(title, texts, " ".join(filter(None, (said, lacking))))


def show_code(page: Page, parts: Sequence[CodePart]) -> None:
    """Programs under their names, with buttons that copy them."""
    with overlay(page) as dialog, ui.card().classes("fs-sheet").props("data-code"):
        for number, part in enumerate(parts):
            with ui.element("div").classes("fs-row").style("align-items: center"):
                ui.label(part.title).classes("fs-heading").props(f'role="heading" aria-level=2 data-part="{number}"')
                if number == 0:
                    closing(dialog)
            if part.said:
                ui.label(part.said).classes("fs-about")
            for language, text in part.texts.items():
                _text(page, language, text)
    dialog.open()


def _text(page: Page, language: str, text: str) -> None:
    with ui.element("div").classes("fs-row").style("align-items: center"):
        ui.label(language).classes("fs-title")
        copy = ui.button("Copy", icon="content_copy", on_click=lambda: _copy(page, text), color=None)
        copy.props("flat dense size=sm").classes("fs-fixed").props["aria-label"] = f"Copy the {language}"
    with ui.element("pre").classes("fs-code").props("tabindex=0"):
        ui.label(text).props(f'data-text="{language}"')


def _copy(page: Page, text: str) -> None:
    ui.clipboard.write(text)
    page.say("Copied.", "positive")
