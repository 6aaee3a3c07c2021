"""Fields that edit one value of the settings each, show what is wrong with it, and follow settings that are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from gen.ui.forms import MethodChoice, OptionField
from gen.ui.page import Page

DENSE = "outlined dense stack-label"


def number(page: Page, name: str, label: str, usual: str = "", step: float = 1) -> Any:
    """A number of the settings; empty where the model decides. usual: what is then taken, shown in grey.

    It has no bounds of its own, to which a number would jump without a word: the settings say what is wrong with it.
    """
    field = ui.number(label, value=getattr(page.settings, name), step=step, placeholder=usual)
    return _kept(page, name, field.props(DENSE).classes("fs-field"))


def text(page: Page, name: str, label: str, rows: int = 1, placeholder: str = "") -> Any:
    """A text of the settings."""
    field = ui.textarea(label, value=getattr(page.settings, name), placeholder=placeholder)
    return _kept(page, name, field.props(f'{DENSE} autogrow input-style="min-height: {rows * 21}px"').classes("fs-field"))


def choice(page: Page, name: str, label: str, options: Mapping[Any, str], *, several: bool = False, search: bool = True) -> Any:
    """One of some names, or several."""
    value = getattr(page.settings, name)
    known = value if several or value in options else next(iter(options))
    field = ui.select(dict(options), label=label, value=known, multiple=several, with_input=search)
    return _kept(page, name, field.props(f"{DENSE} options-dense" + (" use-chips" if several else "")).classes("fs-field"))


def _kept(page: Page, name: str, field: Any) -> Any:
    """Written into the settings as it is edited, shown anew when they are loaded, known by its name."""

    def edited(event: Any) -> None:
        setattr(
            page.settings, name, "" if event.value is None and isinstance(getattr(page.settings, name), str) else event.value
        )
        field.error = None

    def loaded() -> None:
        value = getattr(page.settings, name)
        options = getattr(field, "options", None)
        if isinstance(options, dict) and not isinstance(value, list) and value not in options:
            field.set_options({**options, value: str(value)})
        field.set_value(value)

    field.on_value_change(edited)
    page.on("settings", loaded)
    page.fields[name] = field
    field.props(f'data-field="{name}" aria-label="{field.props.get("label", name)}"')
    return field


def options(page: Page, name: str, methods: Sequence[MethodChoice]) -> None:
    """The options of methods that are chosen, edited in the dict `name` of the settings."""
    values = getattr(page.settings, name)
    for method in methods:
        for option in method.fields:
            field = _option(option, values)
            page.fields[f"{name}.{option.name}"] = field
            field.props(f'data-field="{name}.{option.name}"')


def _option(option: OptionField, values: dict[str, Any]) -> Any:
    label = option.name.replace("_", " ")
    if option.kind == "switch":
        usual = f"{'on' if option.default == 'true' else 'off'} by default"
        field: Any = ui.select({"": usual, True: "on", False: "off"}, label=label, value=values.get(option.name, ""))
        field.props(DENSE + " options-dense")
    else:
        placeholder = "needed" if option.needed else option.default
        field = ui.input(label, value=str(values.get(option.name, "")), placeholder=placeholder).props(DENSE)

    def edited(event: Any) -> None:
        values[option.name] = event.value
        field.error = None
        try:
            option.read(event.value)
        except ValueError as error:
            field.error = str(error)

    field.on_value_change(edited)
    return field.classes("fs-field")


def about(of: Callable[[], Sequence[MethodChoice]]) -> Any:
    """A line that describes the methods chosen; call it again when another is chosen."""
    line = ui.label("").classes("fs-about")

    def show() -> None:
        text = " ".join(f"{method.about[:1].upper()}{method.about[1:]}." for method in of())
        line.set_text(text)
        line.set_visibility(bool(text))

    show()
    return show


def choices_of(table: Mapping[str, MethodChoice] | None, usual: str = "the model's own") -> dict[str, str]:
    """name -> name, with what is taken where nothing is chosen in front."""
    return {"": usual, **{name: name for name in table or {}}}
