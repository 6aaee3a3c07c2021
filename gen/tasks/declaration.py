"""What a task says of itself before it is imported: its keywords, its fields in recipes, the work that it makes.

A recipe is checked, and `fewstep --help` printed, by these declarations alone: nothing here, and nothing in a task's
`options.py`, imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Options = Mapping[str, Any]  # of a method: name -> value, as recipes hold them


@dataclass(frozen=True)
class Frame:
    """A picture of which the network sees only a `window` (height, width in pixels) at once, so that any whole number of
    latents is a size. shown: height and width that it is cut to, None for all of it."""

    window: tuple[int, int]
    shown: tuple[int, int] | None = None


@dataclass(frozen=True)
class RecipeField:
    """A field that a task has in recipes.

    type, default: as of a pydantic field.
    place: its position among the fields of tasks in a recipe's JSON. Those of earlier recipes never move, so that the file of
        a replay is the same to the last byte.
    after: the field of every recipe behind which it stands there.
    description: of the field, for the reference.
    """

    type: Any
    default: Any
    place: float
    after: str = "cache_options"
    description: str | None = None


@dataclass(frozen=True)
class Work:
    """What a recipe's task adds to the work of a replay (`gen.pipeline.work`).

    options: tables of options, some of which repeat the work of a step.
    beside: pictures that go through the network beside each one.
    branches: conditions that are evaluated beside the two of guidance.
    repeats: evaluations for each one.
    pixels: that the network sees at every step, None for those of the picture.
    """

    options: tuple[Options, ...] = ()
    beside: int = 0
    branches: int = 0
    repeats: float = 1.0
    pixels: float | None = None


def _no_work(recipe: Any) -> Work:
    return Work()


@dataclass(frozen=True)
class TaskOptions:
    """The declaration of a task.

    arguments: the dataclass that `Task.from_call` receives; None: a dict of the keywords that are not None.
    keywords: those of a call, which are fields of `arguments`. A task that only a method of `Generator` makes has none.
    fields: of recipes, by name.
    methods: functions that become methods of `Generator`: name -> module.
    work: of a recipe, from its fields.
    steps: of a call with this task that says none itself; None: the model's.
    upgrades: version -> what a recipe of that version or an earlier one must change to make the same picture now.
    """

    arguments: type[Any] | None = None
    keywords: tuple[str, ...] = ()
    fields: Mapping[str, RecipeField] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    work: Callable[[Any], Work] = _no_work
    upgrades: Mapping[int, Callable[[Any], Mapping[str, Any]]] = field(default_factory=dict)
    steps: int | None = None

    def pack(self, values: Mapping[str, Any]) -> Any:
        """Arguments of keywords and their values; ValueError for a keyword that the dataclass has not."""
        if self.arguments is None:
            return dict(values)
        known = names_of(self.arguments)
        if unknown := next((name for name in values if name not in known), None):
            raise ValueError(f"There is no argument {unknown!r:.80}; there are {', '.join(known)}.")
        return self.arguments(**values)


def names_of(arguments: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass."""
    return tuple(field.name for field in fields(arguments))
