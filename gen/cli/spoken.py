"""Commands whose errors and notes name the options that were typed, where the library names keywords of Python."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from typer.core import TyperCommand, TyperOption

from gen.calls.command import OPTIONS
from gen.calls.respell import respell
from gen.cli.headings import ENOUGH, HEADINGS, OTHER, heading_of, place_of


class SpokenCommand(TyperCommand):
    """A command that says what is wrong in the words of its own options, and lists many of them under headings."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options: those of long commands as `gen.cli.headings` has them."""
        options = [one for one in self.get_params(ctx) if one.param_type_name == "option" and one.get_help_record(ctx)]
        if len(options) <= ENOUGH:
            super().format_options(ctx, formatter)
            return
        arguments = [one for one in self.get_params(ctx) if one.param_type_name == "argument"]
        sections = {"Arguments": [record for one in arguments if (record := one.get_help_record(ctx))]}
        for heading in (*HEADINGS, OTHER):
            under = [one for one in options if heading_of(one.opts) == heading]
            under.sort(key=lambda one: place_of(one.opts))
            sections[heading] = [record for one in under if (record := one.get_help_record(ctx))]
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def invoke(self, ctx: Any) -> Any:
        """Run it. What its ValueErrors and warnings say is respelt."""
        words, given = option_words(self), typed_texts(self, ctx.params)
        if isinstance(ctx.params.get("size"), str):
            words |= {side: f"The {side} of --size" for side in ("height", "width")}
        show = warnings.showwarning

        def shown(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            show(respell(str(message), words), category, filename, lineno, file, line)

        try:
            with warnings.catch_warnings():
                warnings.showwarning = shown
                return super().invoke(ctx)
        except ValueError as error:
            error.args = (named(respell(str(error), words), given), *error.args[1:])
            raise


def option_words(command: Any) -> dict[str, str]:
    """Keyword of Python -> option of this command."""
    own = {one.name: max(one.opts, key=len) for one in command.params if isinstance(one, TyperOption) and one.name}
    tables = {keyword: option for keyword, option in OPTIONS.items() if option in own.values()}
    if own.get("joint") == "--joint":  # one option says both
        tables["joint_map"] = "--joint KIND=FILE"
    return {**own, **tables}


def typed_texts(command: Any, values: Mapping[str, Any]) -> dict[str, str]:
    """Text that was typed -> its option: of names and files, which an error may begin with."""
    texts = dict[str, str]()
    for one in command.params:
        if isinstance(one, TyperOption) and one.name != "output":
            value = values.get(str(one.name))
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str | Path) and str(text):
                    texts[str(text)] = max(one.opts, key=len)
    return texts


def named(sentence: str, given: Mapping[str, str]) -> str:
    """A sentence that begins with what was typed, with its option before it."""
    for text, option in given.items():
        for begin in (text, repr(text)):
            if sentence.startswith((f"{begin}: ", f"{begin} ")):
                return f"{option} {sentence}"
    return sentence
