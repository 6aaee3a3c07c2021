"""Fields that edit the attributes of settings, one each, show what is wrong with it, and follow settings that are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nicegui import ui

from gen.ui.checks import UNREADABLE
from gen.ui.forms import MethodChoice, OptionField
from gen.ui.given import PictureField
from gen.ui.settings import FIELDS

if TYPE_CHECKING:
    from gen.ui.page import Page

KEYWORD_FIELDS = {**FIELDS, "guidance": "rule", "cache": "caches", "energy": "guide"}  # keyword of a call -> field
DENSE = "outlined dense stack-label"
NO_NUMBER = "That is no number."
# a browser's field of a number says nothing of what it cannot read: it looks empty
_UNREAD = """(event) => {
  const field = event.target, bad = Boolean(field.validity && field.validity.badInput);
  if (bad !== Boolean(field.fsBad)) { field.fsBad = bad; emit(bad); }
}"""


class FieldSet:
    """Fields of one object, known to the page by name, so that a sentence can stand beside each.

    prefix: what their names begin with, "" for those of the tab "Draw".
    values: whose attributes they edit.
    """

    def __init__(self, page: Page, prefix: str, values: Any):
        self.page, self.prefix, self.values = page, prefix, values
        self.fields: dict[str, Any] = {}

    # ---- kinds of fields ----

    def number(self, name: str, label: str, usual: str = "", step: float = 1) -> Any:
        """A number; empty where the model or method decides. usual: what is then taken, shown in grey.

        It has no bounds of its own, to which a number would jump without a word: the settings say what is wrong with it.
        """
        field = ui.number(label, value=getattr(self.values, name), step=step, placeholder=usual).props(DENSE)
        tell_unread(field, lambda value: setattr(self.values, name, value))
        return self._keep(name, label, field)

    def text(self, name: str, label: str, placeholder: str = "", rows: int = 0) -> Any:
        """A text, of one line where rows is 0."""
        value = getattr(self.values, name)
        if rows:
            field: Any = ui.textarea(label, value=value, placeholder=placeholder)
            field.props(f'autogrow input-style="min-height: {rows * 21}px"')
        else:
            field = ui.input(label, value=value, placeholder=placeholder)
        return self._keep(name, label, field.props(DENSE))

    def choice(
        self,
        name: str,
        label: str,
        options: Mapping[Any, str],
        *,
        several: bool = False,
        search: bool | None = None,
        also: Mapping[str, str] | None = None,
    ) -> Any:
        """One of some names, or several.

        search: it can be typed; by default where there are many.
        also: further names that may be typed -> the option that each means.
        """
        value = getattr(self.values, name)
        search = len(options) > 8 if search is None else search
        known = value if several or value in options else next(iter(options))
        field = ui.select(dict(options), label=label, value=known, multiple=several, with_input=search)
        field.props(f"{DENSE} options-dense" + (" use-chips" if several else ""))
        if search:
            field.on("typed", lambda event: self._typed(field, str(event.args), also or {}))  # of `static/page.js`
        return self._keep(name, label, field)

    def switch(self, name: str, label: str, then: Callable[[], Any] | None = None) -> Any:
        """On or off."""
        field = ui.switch(label, value=getattr(self.values, name))
        return self._keep(name, label, field.props("dense"), then)

    def options(self, name: str, methods: Sequence[MethodChoice]) -> None:
        """The options of methods that are chosen, edited in the dict `name` of the settings."""
        values = getattr(self.values, name)
        for method in methods:
            for option in method.fields:
                self.know(f"{name}.{option.name}", self._option(f"{name}.{option.name}", option, values))

    def _option(self, key: str, option: OptionField, values: dict[str, Any]) -> Any:
        label, value = option.name.replace("_", " "), values.get(option.name, "")
        if option.kind == "picture":
            return PictureField(
                self.page, key, label, lambda: values.get(option.name, ""), lambda file: values.update({option.name: file})
            )
        if option.kind == "switch":
            usual = f"{'on' if option.default == 'true' else 'off'} by default"
            field: Any = ui.select({"": usual, True: "on", False: "off"}, label=label, value=value)
        elif option.kind == "file":
            files = self.page.studio.files()
            none = "needed" if files else "needed: begin with `fewstep ui --models FOLDER`"
            field = ui.select({"": none, **({value: value} if value else {}), **files}, label=label, value=value)
        else:
            field = ui.input(label, value=str(value), placeholder="needed" if option.needed else option.default)

        def edited(event: Any) -> None:
            values[option.name] = event.value
            field.error = None
            try:
                option.read(event.value)
            except ValueError as error:
                field.error = str(error)

        field.on_value_change(edited)
        return field.props(f'{DENSE} options-dense data-field="{key}"').classes("fs-field")

    # ---- what they have in common ----

    def know(self, name: str, field: Any) -> None:
        """A field made elsewhere."""
        self.fields[name] = field
        self.page.fields[self._key(name)] = field

    def set(self, name: str, value: Any) -> None:
        """A value from elsewhere, shown in its field."""
        setattr(self.values, name, value)
        if name in self.fields:
            self.fields[name].set_value(value)

    def wrong(self, name: str, text: str) -> None:
        """A sentence beside a field, or as a message where there is none."""
        if getattr(self.values, name, None) is UNREADABLE:
            setattr(self.values, name, None)  # a browser empties such a field when it is left
        if not self.page.mark(self._key(name), text):
            self.page.say(text, "negative")

    def mark_keyword(self, text: str) -> bool:
        """Put a sentence beside the field of the keyword that it begins with; False if there is none."""
        keyword, _, rest = text.partition(" ")
        if keyword == "Unknown":  # as in "Unknown sampler 'x': did you mean 'y'? Known: ...", and the field has the list
            keyword, text = rest.partition(" ")[0], text.partition(" Known: ")[0]
        return self.page.mark(self._key(KEYWORD_FIELDS.get(keyword, keyword)), text)

    def right(self) -> None:
        """No sentences and no message of an error any more."""
        self.page.toasts.forget("negative")
        for field in self.fields.values():
            if getattr(field, "error", None):
                field.error = None

    def _key(self, name: str) -> str:
        return f"{self.prefix}.{name}" if self.prefix else name

    def _keep(self, name: str, label: str, field: Any, then: Callable[[], Any] | None = None) -> Any:
        """Written into the settings as it is edited, shown anew when they are loaded, known by its name."""

        def edited(event: Any) -> None:
            blank = "" if isinstance(getattr(self.values, name), str) else None
            setattr(self.values, name, blank if event.value is None else event.value)
            if hasattr(field, "error"):
                field.error = None
            if then is not None:
                then()

        def loaded() -> None:
            if field.is_deleted:  # one that is made anew with its section
                return
            value = getattr(self.values, name)
            if not isinstance(value, list):
                _offer(field, value)
            field.set_value(value)

        field.on_value_change(edited)
        if not self.prefix:
            self.page.on("settings", loaded)
        field.props(f'data-field="{self._key(name)}"')
        field.props["aria-label"] = label
        self.know(name, field)
        return field.classes("fs-field")

    def _typed(self, field: Any, typed: str, also: Mapping[str, str]) -> None:
        """What a searchable choice is left with: a name that is there is taken, another one stays and is said to be wrong."""
        several, typed = isinstance(field.value, list), typed.strip()
        if not typed or (not several and typed == field.options.get(field.value)):
            return
        from samplers.lookup import normalise_name  # imports torch, as all of `samplers` does

        meant = {normalise_name(text): value for value, text in field.options.items() if value != ""}
        meant |= {normalise_name(other): name for other, name in also.items()}
        known = meant.get(normalise_name(typed))
        if several and known is not None:
            field.set_value([*(one for one in field.value if one != known), known])
        elif not several:
            _offer(field, typed if known is None else known)
            field.set_value(typed if known is None else known)
        if known is None:
            field.error = not_listed(typed, (str(value) for value in field.options if value not in ("", typed)))


def tell_unread(field: Any, write: Callable[[float | None], Any]) -> None:
    """Let a number's field say what it cannot read, as "e-". write: told of `UNREADABLE`, and of the number once it is one."""

    def unread(event: Any) -> None:
        write(UNREADABLE if event.args else field.value)
        field.error = NO_NUMBER if event.args else None

    field.on("keyup", unread, js_handler=_UNREAD)
    field.on("blur", js_handler="(event) => { event.target.fsBad = false; }")


def not_listed(typed: str, names: Iterable[str]) -> str:
    """The sentence about a name that a list does not have."""
    from samplers.lookup import nearest  # imports torch, as all of `samplers` does

    near = nearest(typed, names)
    return f"{typed!r:.60} is not in the list; {f'did you mean {near}?' if near else 'choose one of its names.'}"


def _offer(field: Any, value: Any) -> None:
    """Let a choice have a value that is none of its own: the field shows what is set, whatever it is."""
    options = getattr(field, "options", None)
    if isinstance(options, dict) and value not in options:
        field.set_options({**options, value: str(value)})


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


def other_names(table: Mapping[str, MethodChoice]) -> dict[str, str]:
    """Names of other programs -> the method that each means."""
    return {other: name for name, method in table.items() for other in method.also}
