"""The options that tasks have in `fewstep image` and `fewstep replay`, those of tasks that `--import` registers among them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, Protocol, get_type_hints

import typer
from typer.models import OptionInfo

from gen.cli.groups import grouped
from gen.cli.spoken import SpokenCommand
from gen.io.user_code import import_files
from gen.tasks.table import TASKS


class TaskGroup(Protocol):
    """What a command receives for the options of all tasks."""

    def keywords(self) -> dict[str, Any]:
        """Of a call, or of a replay, by name."""


def commands() -> Iterator[Callable[..., int]]:
    """The commands that are tasks' own: restore, panorama, ..."""
    for row in TASKS.values():
        if row.command_line:
            yield from importlib.import_module(row.command_line).COMMANDS


def add(app: typer.Typer) -> None:
    """Make them part of the program."""
    for command in commands():
        app.command(cls=SpokenCommand)(command)


def groups_of(part: str) -> list[type[Any]]:
    """The dataclasses of options that tasks have for a command, "IMAGE" or "REPLAY", the first task of the table last.

    A registered task has one for `fewstep image`: its dataclass of keywords, if all fields have a `typer.Option`.
    """
    groups: list[type[Any]] = []
    for row in reversed(TASKS.values()):
        if row.command_line:
            groups.append(getattr(importlib.import_module(row.command_line), part))
        elif part == "IMAGE" and row.registered and is_dataclass(row.options.arguments):
            hints = get_type_hints(row.options.arguments, include_extras=True)
            if all(any(isinstance(of, OptionInfo) for of in getattr(hint, "__metadata__", ())) for hint in hints.values()):
                groups.append(row.options.arguments)
    return [group for group in groups if group is not None]


def joined(part: str) -> type[TaskGroup]:
    """One dataclass of the options of all tasks; its `keywords` are theirs."""
    groups = groups_of(part)

    def keywords(self: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for group in groups:
            one = group(**{option.name: getattr(self, option.name) for option in fields(group)})
            values |= one.keywords() if hasattr(one, "keywords") else vars(one)
        return values

    options = [
        (option.name, get_type_hints(group, include_extras=True)[option.name], field(default=option.default))
        for group in groups
        for option in fields(group)
    ]
    return make_dataclass("TaskOptions", options, namespace={"keywords": keywords}, frozen=True)


def add_command(app: typer.Typer, function: Callable[..., int], part: str) -> None:
    """Make a function with a parameter `tasks` a command of the program, with the options of all tasks in its place."""

    built_in = groups_of(part)

    class Importing(SpokenCommand):
        """A command that runs the files after --import first, and then has the options of the tasks that they register."""

        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            import_files(imports_among(args))
            if groups_of(part) != built_in:
                one = typer.Typer(add_completion=False, rich_markup_mode=None)
                one.command()(grouped(function, tasks=joined(part)))
                fresh = typer.main.get_command(one)
                self.params, self.callback = fresh.params, fresh.callback
            return super().make_context(info_name, args, parent, **extra)

    app.command(cls=Importing)(grouped(function, tasks=joined(part)))


def imports_among(arguments: Sequence[str]) -> list[str]:
    """The files after --import, before anything else of a command line is read."""
    files = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            break
        name, equals, file = argument.partition("=")
        if name == "--import" and (equals or position + 1 < len(arguments)):
            files.append(file if equals else arguments[position + 1])
    return files
