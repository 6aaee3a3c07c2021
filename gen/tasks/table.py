"""The table of tasks: what a call may ask for beside plain generation. Torch is not imported here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from gen.tasks.declaration import TaskOptions, names_of

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class TaskRow:
    """A task in the table.

    declared: its `TaskOptions`, or the module that has them as `OPTIONS`.
    task: its class, or "module:Class", imported when a call asks for it.
    command_line: the module of its commands and options, "" for none.
    """

    declared: str | TaskOptions
    task: Any
    command_line: str = ""

    @classmethod
    def in_folder(cls, folder: str, name: str) -> TaskRow:
        """The class `name` of a package whose modules are `options`, `task` and `cli`."""
        return cls(f"{folder}.options", f"{folder}.task:{name}", f"{folder}.cli")

    @property
    def options(self) -> TaskOptions:
        return importlib.import_module(self.declared).OPTIONS if isinstance(self.declared, str) else self.declared

    @property
    def registered(self) -> bool:
        """By the user, in this process."""
        return not isinstance(self.task, str)

    def load(self) -> Any:
        """The class."""
        if self.registered:
            return self.task
        module, _, name = self.task.partition(":")
        return getattr(importlib.import_module(module), name)

    def load_method(self, name: str) -> Callable[..., Any]:
        """A function that is a method of `Generator`."""
        return getattr(importlib.import_module(self.options.methods[name]), name)


# closed, in the order in which they go around the network
TASKS: dict[str, TaskRow] = {
    "hires": TaskRow.in_folder("gen.tasks.hires", "Hires"),
    "refiner": TaskRow.in_folder("gen.tasks.refiner", "Refiner"),
    "variation": TaskRow.in_folder("gen.tasks.variation", "Variation"),
    "search": TaskRow.in_folder("gen.tasks.search", "FoundNoise"),
    "composition": TaskRow.in_folder("gen.tasks.lora_composition", "Composition"),
    "layout": TaskRow.in_folder("gen.tasks.layout", "Layout"),
    "views": TaskRow.in_folder("gen.tasks.views", "Views"),
    "enlargement": TaskRow("gen.tasks.enlarge.options", "gen.tasks.enlarge.task:Enlarge"),
    "canvas": TaskRow.in_folder("gen.tasks.canvas", "Canvas"),
    "restoration": TaskRow.in_folder("gen.tasks.restore", "Restoration"),
    "guide": TaskRow.in_folder("gen.tasks.energy_guidance", "Guide"),
    "training_free": TaskRow.in_folder("gen.tasks.training_free", "TrainingFree"),
    "control": TaskRow.in_folder("gen.tasks.control", "ControlTask"),
    "references": TaskRow.in_folder("gen.tasks.references", "ReferencesTask"),
    "image_prompt": TaskRow.in_folder("gen.tasks.image_prompt", "ImagePrompts"),
    "encoding": TaskRow.in_folder("gen.tasks.text_encoding", "TextEncoding"),
    "pipeline": TaskRow.in_folder("gen.tasks.whole_pipeline", "WholePipeline"),
    "translation": TaskRow.in_folder("gen.tasks.translate", "Translate"),
    "image": TaskRow.in_folder("gen.tasks.edit", "Edit"),
    "around": TaskRow.in_folder("gen.tasks.positional_query", "Around"),
    "joint": TaskRow.in_folder("gen.tasks.joint", "JointTask"),
    "transparent": TaskRow.in_folder("gen.tasks.transparent", "Transparent"),
}


def register_task(name: str, task: type[Any], keywords: Sequence[str] | type[Any]) -> None:
    """Make a task of your own known, for the rest of this process. It goes around all tasks that were there before.

    name: of the task in recipes, an identifier.
    task: a subclass of `gen.pipeline.types.Task` with `from_call` and the methods that it needs. Its `record` returns the
        keywords that make the picture again (numbers, texts, booleans or tuples of numbers). Recipes keep them; a replay hands
        them to `from_call`.
    keywords: the keywords of a call that belong to it. Names: `from_call` receives a dict of those that are not None. Or a
        dataclass with a field for each, None by default: `from_call` receives one.
    Raises ValueError for a name or keyword that is taken.
    """
    arguments = keywords if isinstance(keywords, type) and is_dataclass(keywords) else None
    names = tuple(keywords) if arguments is None else names_of(arguments)  # type: ignore[arg-type]
    taken = {keyword: other for other, row in TASKS.items() for keyword in row.options.keywords if other != name}
    if not name.isidentifier() or (name in TASKS and TASKS[name].task is not task):
        raise ValueError(f"A task is registered under an identifier that no other task has, got {name!r}; choose another name.")
    clash = next((keyword for keyword in names if keyword in taken), None)
    if not names or clash is not None:
        problem = "it has none" if clash is None else f"{clash!r} belongs to the task {taken[clash]!r} already"
        raise ValueError(f"The task {name!r} needs keywords of its own: {problem}.")
    TASKS[name] = TaskRow(TaskOptions(arguments, names), task)
