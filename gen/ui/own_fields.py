"""Fields that edit the attributes of a tab's own settings, as `fields.py` does those of the tab "Draw"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from gen.ui.fields import DENSE
from gen.ui.page import Page


class OwnFields:
    """Fields of one object, known to the page as `PREFIX.name`, so that a sentence can stand beside each."""

    def __init__(self, page: Page, prefix: str, values: Any):
        self.page, self.prefix, self.values = page, prefix, values
        self.fields: dict[str, Any] = {}

    def number(self, name: str, label: str, usual: str = "", step: float = 1) -> Any:
        """A number; empty where the method decides. usual: what is then taken."""
        field = ui.number(label, value=getattr(self.values, name), step=step, placeholder=usual)
        return self._keep(name, label, field.props(DENSE))

    def text(self, name: str, label: str, placeholder: str = "", rows: int = 0) -> Any:
        """A text, of one line where rows is 0."""
        value = getattr(self.values, name)
        if rows:
            field: Any = ui.textarea(label, value=value, placeholder=placeholder)
            field.props(f'autogrow input-style="min-height: {rows * 21}px"')
        else:
            field = ui.input(label, value=value, placeholder=placeholder)
        return self._keep(name, label, field.props(DENSE))

    def choice(self, name: str, label: str, options: Mapping[Any, str], search: bool = False) -> Any:
        """One of some names."""
        field = ui.select(dict(options), label=label, value=getattr(self.values, name), with_input=search)
        return self._keep(name, label, field.props(f"{DENSE} options-dense"))

    def switch(self, name: str, label: str, then: Callable[[], Any] | None = None) -> Any:
        """On or off."""
        field = ui.switch(label, value=getattr(self.values, name))
        return self._keep(name, label, field.props("dense"), then)

    def _keep(self, name: str, label: str, field: Any, then: Callable[[], Any] | None = None) -> Any:
        def edited(event: Any) -> None:
            blank = "" if isinstance(getattr(self.values, name), str) else None
            setattr(self.values, name, blank if event.value is None else event.value)
            if hasattr(field, "error"):
                field.error = None
            if then is not None:
                then()

        field.on_value_change(edited)
        field.props(f'data-field="{self.prefix}.{name}"')
        field.props["aria-label"] = label
        self.know(name, field)
        return field.classes("fs-field")

    def know(self, name: str, field: Any) -> None:
        """A field made elsewhere."""
        self.fields[name] = field
        self.page.fields[f"{self.prefix}.{name}"] = field

    def set(self, name: str, value: Any) -> None:
        """A value from elsewhere, shown in its field."""
        setattr(self.values, name, value)
        if name in self.fields:
            self.fields[name].set_value(value)

    def wrong(self, name: str, text: str) -> None:
        """A sentence beside a field, or as a message where there is none."""
        field = self.fields.get(name)
        if field is None or not hasattr(field, "error"):
            self.page.say(text, "negative")
        else:
            field.error = text

    def right(self) -> None:
        """No sentences any more."""
        for field in self.fields.values():
            if getattr(field, "error", None):
                field.error = None
