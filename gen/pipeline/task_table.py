"""The table of tasks: which file makes what a call asks for, and which keywords and recipe fields belong to it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import TYPE_CHECKING, Any

from gen.pipeline.types import Frame, Item, Settings, Task
from samplers.lookup import nearest

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.recipe import Recipe


@dataclass(frozen=True)
class TaskRow:
    """A task in the table.

    module, name: its class, imported when it is asked for.
    keywords: those of a call that are its own. A task that only a method of `Generator` makes has none.
    fields: of a recipe.
    methods: functions that become methods of `Generator`, in `methods_module` where they are not in `module`.
    task: the class itself, of a task that the user registered.
    """

    module: str
    name: str
    keywords: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    methods_module: str = ""
    task: type[Task] | None = None

    def load(self) -> type[Task]:
        return self.task or getattr(importlib.import_module(self.module), self.name)

    def load_method(self, name: str) -> Callable[..., Any]:
        return getattr(importlib.import_module(self.methods_module or self.module), name)


# closed, in the order in which they go around the network
TASKS: dict[str, TaskRow] = {
    "composition": TaskRow(
        "gen.tasks.lora_composition",
        "Composition",
        ("composition", "composition_options", "regions"),
        ("composition", "composition_options", "regions"),
    ),
    "layout": TaskRow("gen.tasks.layout", "Layout", ("layout",), ("layout",), ("layout",)),
    "views": TaskRow("gen.tasks.views", "Views", (), ("views",), ("ambiguous",)),
    "canvas": TaskRow(
        "gen.tasks.canvas", "Canvas", (), ("canvas",), ("panorama", "outpaint", "upscale"), "gen.tasks.canvas_calls"
    ),
    "restoration": TaskRow("gen.tasks.restore", "Restoration", (), ("restore",), ("restore",)),
    "guide": TaskRow(
        "gen.tasks.energy_guidance", "Guide", ("guide", "guide_strength", "guide_method", "guide_options"), ("guide",)
    ),
    "training_free": TaskRow(
        "gen.tasks.training_free",
        "TrainingFree",
        (
            "negtome",
            "negtome_mask",
            "negtome_options",
            "reference",
            "reference_mask",
            "reference_prompt",
            "reference_options",
            "concepts",
            "concepts_options",
            "aesthetic",
            "aesthetic_options",
            "greedy",
            "greedy_options",
        ),
        ("tweaks",),
    ),
    "image": TaskRow("gen.tasks.edit", "Edit", ("image", "mask", "strength"), ("start",)),
}


class TaskMethod:
    """A function of a task as a method of `Generator`; its module is imported when the method is looked at."""

    def __init__(self, row: TaskRow, name: str):
        self.row, self.name = row, name

    def __get__(self, generator: Any, owner: type | None = None) -> Callable[..., Any]:
        function = self.row.load_method(self.name)
        return function if generator is None else MethodType(function, generator)


METHODS = {method: row for row in TASKS.values() for method in row.methods}


def register_task(name: str, task: type[Task], keywords: Sequence[str]) -> None:
    """Make a task of your own known, for the rest of this process. It goes around all tasks that were there before.

    name: of the task in recipes, an identifier.
    task: a subclass of `Task` with `from_call` and the methods that it needs. Its `record` returns the keywords that make the
        picture again (numbers, texts, booleans or tuples of numbers). Recipes keep them; a replay hands them to `from_call`.
    keywords: the keywords of a call that belong to it.
    Raises ValueError for a name or keyword that is taken.
    """
    taken = {keyword: other for other, row in TASKS.items() for keyword in row.keywords if other != name}
    if not name.isidentifier() or (name in TASKS and TASKS[name].task is not task):
        raise ValueError(f"A task is registered under an identifier that no other task has, got {name!r}; choose another name.")
    clash = next((keyword for keyword in keywords if keyword in taken), None)
    if not keywords or clash is not None:
        problem = "it has none" if clash is None else f"{clash!r} belongs to the task {taken[clash]!r} already"
        raise ValueError(f"The task {name!r} needs keywords of its own: {problem}.")
    TASKS[name] = TaskRow(task.__module__, task.__qualname__, tuple(keywords), task=task)


def record_of(name: str, task: Task, items: Sequence[Item]) -> Mapping[str, Any]:
    """The fields of the recipes of a batch that a task fills in."""
    record = task.record(items)
    return {"own_tasks": {name: dict(record)}} if TASKS[name].task is not None and record else record


TaskArgs = dict[str, Mapping[str, Any]]  # task -> its keywords, those that are not None


def check_keywords(keywords: Iterable[str], others: Iterable[str]) -> None:
    """TypeError, as of any function, for a keyword that is no task's. others: the rest of what the function takes."""
    known = [name for row in TASKS.values() for name in row.keywords]
    others = list(others)
    if clash := next((name for name in known if name in others), None):
        raise TypeError(f"The keyword {clash!r} of a registered task is one of every call; register the task with another one.")
    for name in keywords:
        if name not in known:
            near = nearest(name, [*known, *others])
            hint = f"; did you mean {near!r}?" if near else "."
            raise TypeError(f"A call takes no {name!r}{hint}")


def args_of_call(keywords: Mapping[str, Any]) -> TaskArgs:
    """The keywords of every task that a call asks for, out of all keywords of the call."""
    args: TaskArgs = {}
    for name, row in TASKS.items():
        task_args = {keyword: keywords[keyword] for keyword in row.keywords if keywords.get(keyword) is not None}
        if task_args:
            args[name] = task_args
    return args


def args_from_recipe(model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> TaskArgs:
    """The keywords of every task that the picture of a recipe was made with.

    keywords: of the replay, for what the recipe does not hold; ValueError for what it does hold, or what was not there.
    """
    args = args_of_call(keywords)
    for name, record in (recipe.own_tasks or {}).items():
        if name not in TASKS or TASKS[name].task is None:
            raise ValueError(
                f"The picture was made with the task {name!r}, which is not registered here: import the file that registers it."
            )
        if name in args:
            raise ValueError(f"The recipe says {', '.join(record)} already; leave {', '.join(args[name])} out.")
        args[name] = dict(record)
    for name, row in reversed(TASKS.items()):
        if row.task is None and (name in args or any(getattr(recipe, field) for field in row.fields)):
            task_args = row.load().args_from_recipe(model, recipe, keywords)
            args[name] = {keyword: value for keyword, value in task_args.items() if value is not None}
    return {name: task_args for name, task_args in args.items() if task_args}


def frame_of(args: TaskArgs) -> Frame | None:
    """What the network sees at once, where one of the tasks says so."""
    frames = [TASKS[name].load().frame(task_args) for name, task_args in args.items()]
    return next((frame for frame in frames if frame is not None), None)


def with_own_size(
    model: Model, args: TaskArgs, height: int | None, width: int | None, multiple: int
) -> tuple[TaskArgs, int | None, int | None]:
    """(keywords, height, width), where a call begins with a picture and does not say both sides."""
    sized = dict(args)
    for name, task_args in args.items():
        sized[name], height, width = TASKS[name].load().own_size(model, task_args, height, width, multiple)
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
