"""Options that commands share, in groups: a dataclass of options becomes those options in every command that takes one.

@dataclass(frozen=True)
class Run:
    steps: Steps = None

@grouped
def layout(file: File, *, run: Run) -> int: ...      # fewstep layout FILE --steps N
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def grouped(command: Callable[..., int], **groups_of_parameters: type[Any]) -> Callable[..., int]:
    """A command whose parameters that are dataclasses stand as their fields in its signature, in their place and order.

    groups_of_parameters: dataclasses of parameters that name none themselves.
    """
    hints = get_type_hints(command, include_extras=True) | groups_of_parameters
    groups: dict[str, type[Any]] = {
        name: hint for name, hint in hints.items() if name != "return" and isinstance(hint, type) and is_dataclass(hint)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        group = groups[parameter.name]
        group_hints = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=group_hints[field.name]
            )
            for field in fields(group)
        ]

    @functools.wraps(command)
    def flat(**given: Any) -> int:
        packed = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        return command(**given, **packed)

    flat.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": int}
    del flat.__wrapped__  # type: ignore[attr-defined]  # whose signature inspect would follow
    return flat
