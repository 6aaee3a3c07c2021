"""The tasks of a call: from keywords or a recipe to the `Task` objects of its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

from gen.models.options import OPENING
from gen.pipeline.types import Item, Settings, Task
from gen.tasks.declaration import Frame
from gen.tasks.table import TASKS, TaskRow
from gen.tasks.table import register_task as register_task
from samplers.lookup import nearest

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe

TaskArgs = dict[str, Any]  # task -> its declared arguments


class TaskMethod:
    """A function of a task as a method of `Generator`; its module is imported when the method is looked at."""

    def __init__(self, row: TaskRow, name: str):
        self.row, self.name = row, name

    def __get__(self, generator: Any, owner: type | None = None) -> Callable[..., Any]:
        function = self.row.load_method(self.name)
        return function if generator is None else MethodType(function, generator)


METHODS = {method: row for row in TASKS.values() for method in row.options.methods}


def record_of(name: str, task: Task, items: Sequence[Item]) -> Mapping[str, Any]:
    """The fields of the recipes of a batch that a task fills in."""
    record = task.record(items)
    return {"own_tasks": {name: dict(record)}} if TASKS[name].registered and record else record


def check_keywords(keywords: Iterable[str], others: Iterable[str]) -> None:
    """TypeError, as of any function, for a keyword that is no task's. others: the rest of what the function takes."""
    known = [name for row in TASKS.values() for name in row.options.keywords]
    others = list(others)
    if clash := next((name for name in known if name in others), None):
        raise TypeError(f"The keyword {clash!r} of a registered task is one of every call; register the task with another one.")
    for name in keywords:
        if name not in known:
            if name in OPENING:
                raise TypeError(f"A call takes no {name!r}: it is for opening a model; give it to Generator.from_pretrained.")
            near = nearest(name, [*known, *others])
            hint = f"; did you mean {near!r}?" if near else "."
            raise TypeError(f"A call takes no {name!r}{hint}")


def args_of_call(keywords: Mapping[str, Any]) -> TaskArgs:
    """The arguments of every task that a call asks for, out of all keywords of the call."""
    args: TaskArgs = {}
    for name, row in TASKS.items():
        values = {keyword: keywords[keyword] for keyword in row.options.keywords if keywords.get(keyword) is not None}
        if values:
            args[name] = row.options.pack(values)
    return args


def args_from_recipe(model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> TaskArgs:
    """The arguments of every task that the picture of a recipe was made with.

    keywords: of the replay, for what the recipe does not hold; ValueError for what it does hold, or what was not there.
    """
    args: TaskArgs = args_of_call(keywords)
    for name, record in (recipe.own_tasks or {}).items():
        if name not in TASKS or not TASKS[name].registered:
            raise ValueError(
                f"The picture was made with the task {name!r}, which is not registered here: import the file that registers it."
            )
        if name in args:
            again = [keyword for keyword in TASKS[name].options.keywords if keywords.get(keyword) is not None]
            raise ValueError(f"The recipe says {', '.join(record)} already; leave {', '.join(again)} out.")
        args[name] = TASKS[name].options.pack(record)
    for name, row in reversed(TASKS.items()):
        if not row.registered and (name in args or any(getattr(recipe, field) for field in row.options.fields)):
            args[name] = row.load().args_from_recipe(model, recipe, keywords)
    return {name: task_args for name, task_args in args.items() if task_args is not None}


def steps_of(args: TaskArgs) -> int | None:
    """The steps of a call that says none, where a task of it has its own."""
    return next((TASKS[name].options.steps for name in args if TASKS[name].options.steps is not None), None)


def frame_of(args: TaskArgs) -> Frame | None:
    """What the network sees at once, where the arguments of a task say so."""
    return next((frame for task_args in args.values() if (frame := getattr(task_args, "frame", None)) is not None), None)


def with_chosen_size(
    model: Model, args: TaskArgs, height: int | None, width: int | None, multiple: int
) -> tuple[TaskArgs, int | None, int | None]:
    """(arguments, height, width), where a call begins with a picture and does not say both sides."""
    sized = dict(args)
    for name, task_args in args.items():
        sized[name], height, width = TASKS[name].load().choose_size(model, task_args, height, width, multiple)
    return sized, height, width


def with_tasks(model: Model, args: TaskArgs, settings: Settings) -> Settings:
    """The settings with the tasks asked for, made from the outermost to the innermost, and as they change them."""
    tasks: dict[str, Task] = {}
    for name in reversed(TASKS):
        if name in args:
            task, settings = TASKS[name].load().from_call(model, args[name], settings)
            if task is not None:
                tasks[name] = task
    settings = replace(settings, tasks={name: tasks[name] for name in TASKS if name in tasks})
    for task in settings.tasks.values():
        task.check(settings)
    return settings
