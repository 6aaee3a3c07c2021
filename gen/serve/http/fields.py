"""Types of fields that requests are read by, and what is said of a value that is none: as JSON has it, not as Python does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from gen.calls.kinds import LARGEST, WHOLE_END, shown
from gen.serve.http.errors import BadRequest
from samplers.lookup import nearest


def _no_flag(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "a number is not true or false")
    return value


Whole = Annotated[int, BeforeValidator(_no_flag), Field(gt=-WHOLE_END, lt=WHOLE_END)]
Number = Annotated[float, BeforeValidator(_no_flag), Field(ge=-LARGEST, le=LARGEST)]
LONGEST_PROMPT = 10_000  # characters, of a prompt and of any other text of a call
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]

_WORDS = (  # beginnings of pydantic's kinds of error -> what may be given
    ("int", "a whole number"),
    ("float", "a number"),
    ("finite", "a number"),
    ("string", "a text"),
    ("bool", "true or false"),
    ("dict", "an object"),
    ("model", "an object"),
    ("list", "a list"),
)
_BOUNDS = {"greater_than_equal": "at least {ge}", "greater_than": "more than {gt}", "less_than_equal": "at most {le}"}


def describe_validation(errors: Sequence[Any], body: Any = None) -> tuple[str, str | None]:
    """(sentence, where) of the first thing that a model of pydantic refuses in a body, each `loc` beginning with "body"."""
    first = errors[0]
    kind, context = str(first.get("type", "")), first.get("ctx", {})
    where = ".".join(str(part) for part in first.get("loc", ())[1:] if part != "[key]") or None
    name = where or "The body"
    if kind == "json_invalid":
        return "The body is not JSON; send an object as application/json.", None
    if kind == "missing" and where and isinstance(body, Mapping) and (near := nearest(where, map(str, body))) is not None:
        return f"{where} is missing; did you mean it by {shown(near)}?", where
    if kind == "missing":
        return f"{name} is missing; send it." if where else "The body is missing; send an object as application/json.", where
    if kind == "string_too_long":
        return f"{name} has {len(first['input'])} characters; send {context['max_length']} at the most.", where
    return f"{name} is {shown(first.get('input'))}; give {_allowed(kind, context)}.", where


def _allowed(kind: str, context: Mapping[str, Any]) -> str:
    if kind in _BOUNDS:
        bound = _BOUNDS[kind].format(**context)
        return "a number" if any(str(limit) in bound for limit in (-WHOLE_END, -LARGEST, LARGEST)) else bound
    if kind == "less_than":
        return "a smaller number"
    if kind == "literal_error":
        return str(context.get("expected", "")).replace("'", '"')
    return next((words for start, words in _WORDS if kind.startswith(start)), "another value")


def check_known(given: Iterable[str], known: Iterable[str]) -> None:
    """BadRequest for a name of a field that is none, with the nearest that is."""
    names = list(known)
    for name in given:
        if name not in names:
            near = nearest(name, names)
            hint = f"did you mean {near}?" if near else "leave it out. /openapi.json lists what there is."
            raise BadRequest(f"There is no field {shown(name)}; {hint}", name[:100])
