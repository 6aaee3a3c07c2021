"""Closed tables by name: any spelling is found, and a wrong one gets the nearest suggested."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_NEAR, _NEAR_SHORT, _SHORT = 0.75, 0.66, 4  # of 1; of names of up to so many letters, one of which may be wrong
_MATCHES, _AS_NEAR = 8, 0.1  # names that are looked at, and by how much less like one may be to count as nearly as near
_LONGEST = 200  # characters of a name that are compared


def normalise_name(name: str) -> str:
    """One spelling for all: "DPM++ 2M SDE" and "dpmpp_2m_sde" are both "dpmpp2msde"."""
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())


_spelled = functools.lru_cache(4096)(normalise_name)  # of the tables' own names, which every call asks for anew


def spellings(table: dict[str, Any]) -> dict[str, str]:
    """Every spelling in a table, plain -> the row's name. Rows have `name`, `aliases` and `options`."""
    return {_spelled(spelling): name for name, info in table.items() for spelling in (name, *info.aliases)}


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The one of the known names that somebody meant who wrote another, spelled as in `known`; None where none is near.

    Every "did you mean" is of this. Names are compared as `normalise_name` spells them. Near is what shares three quarters of
    its letters, in their order, or all but one: a wrong suggestion sends people astray, and the known names are listed beside
    it anyway. Of names nearly as near, one that has all that was written is meant: people leave letters out ("dpm2m").
    """
    names = dict[str, str]()
    for one in known:
        names.setdefault(normalise_name(one) or one, one)
    spelling = normalise_name(str(name)[:_LONGEST])
    matches = difflib.get_close_matches(spelling, names, n=_MATCHES, cutoff=_NEAR if len(spelling) > _SHORT else _NEAR_SHORT)
    if not matches:
        return None
    least = _likeness(matches[0], spelling) - _AS_NEAR
    whole = (one for one in matches if _holds(one, spelling) and _likeness(one, spelling) >= least)
    return names[next(whole, matches[0])]


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()  # in the order of difflib's own search


def _holds(name: str, letters: str) -> bool:
    """Does a name have all these letters, in their order?"""
    rest = iter(name)
    return all(letter in rest for letter in letters)


def find(table: dict[str, Any], name: str, kind: str) -> Any:
    """The row of a name or alias. ValueError, with the nearest name, if there is none; `kind` says what the table is of."""
    if not isinstance(name, str):
        article = "An" if kind[0] in "aeiou" else "A"
        raise ValueError(f"{article} {kind} is chosen by its name, got {name!r:.80}. Known: {', '.join(table)}.")
    names = spellings(table)
    if found := names.get(normalise_name(name)):
        return table[found]
    near = nearest(name, names)
    hint = f": did you mean {names[near]!r}?" if near else "."
    raise ValueError(f"Unknown {kind} {name!r:.80}{hint} Known: {', '.join(table)}.")


def check_free(table: dict[str, Any], info: Any, kind: str) -> None:
    """ValueError where a row of the user's own has a spelling that the table knows already."""
    names = spellings(table)
    for spelling in (info.name, *info.aliases):
        if not isinstance(spelling, str) or not normalise_name(spelling):
            raise ValueError(f"A {kind} is registered under a name with letters or digits, got {spelling!r}.")
        if taken := names.get(normalise_name(spelling)):
            raise ValueError(f"The {kind} {spelling!r} exists already, as {taken!r}; choose another name.")


def register(table: dict[str, Any], info: Any, kind: str) -> None:
    """Add a row of the user's own to a table, for this process. The same row once more changes nothing.

    ValueError where its name or an alias is taken, or what it builds with is no function.
    """
    if table.get(info.name) == info:
        return
    check_free(table, info, kind)
    if not callable(info.factory):
        raise ValueError(f"The {kind} {info.name!r} is made by a function or class; {info.factory!r} is none.")
    table[info.name] = info


def register_own(
    row: type[Any],
    known: Mapping[str, Any],
    own: dict[str, Any],
    kind: str,
    name: str,
    factory: Callable[..., Any],
    description: str,
    options: Sequence[str] = (),
    needs: Sequence[str] = (),
    **more: Any,
) -> None:
    """Add a row of the user's own to a table whose rows name a module and what it makes there (energies, rewards).

    row: the type of the table's rows. known: the table. own: the rows of the user's own, which it joins. factory, description,
    options, needs, more: its fields. ValueError where its name or an alias is taken.
    """
    info = row(name, "", "", description, tuple(options), tuple(needs), external=True, made_by=factory, **more)
    check_free({**known, **own}, info, kind)
    own[name] = info


def check_options(info: Any, options: dict[str, Any], kind: str) -> None:
    """ValueError for an option that the row does not have."""
    for name in options:
        if name not in info.options:
            takes = f"it takes {', '.join(info.options)}" if info.options else "it takes none"
            raise ValueError(f"The {kind} {info.name!r} has no option {name!r}: {takes}.")


_NUMBER = {"float", "int"}
_LISTS = {"tuple", "list", "Sequence", "Iterable"}
_KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a name",
    "Literal": "a name",
    **dict.fromkeys(_LISTS, "several values"),
}


def build(info: Any, kind: str, make: Any, *arguments: Any, options: dict[str, Any]) -> Any:
    """What `make` makes of the arguments and options. ValueError, in a sentence, for options of the wrong type: those that its
    signature tells from what it takes, and those that it cannot compute with."""
    for name, value in options.items():
        if takes := _expected(make, name, value):
            raise ValueError(f"The {kind} {info.name!r} takes {takes} as {name}, got {value!r:.80}.")
    try:
        return make(*arguments, **options)
    except (TypeError, AttributeError, OverflowError, ValueError) as error:
        ours = isinstance(error, ValueError) and "unpack" not in str(error)  # Python's, for values of another number
        if ours or not options:
            raise
        named_options = ", ".join(f"{name}={value!r:.80}" for name, value in options.items())
        raise ValueError(f"The {kind} {info.name!r} cannot use {named_options}: {error}.") from error


def _expected(make: Any, name: str, value: Any) -> str:
    """What a signature takes for an option, in words, where the value is nothing of that; "" where it is."""
    try:
        annotation = inspect.signature(make).parameters[name].annotation
    except (KeyError, TypeError, ValueError):
        return ""
    if not isinstance(annotation, str):
        return ""
    outer = re.sub(r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]", "", annotation)  # of tuple[float, float] only tuple
    takes = [part.strip() for part in outer.split("|")]
    if not set(takes) <= {*_KINDS, "None"}:
        return ""  # a type of our own
    fits = (
        (value is None and "None" in takes)
        or (isinstance(value, bool) and "bool" in takes)
        or (isinstance(value, int) and not isinstance(value, bool) and bool(_NUMBER & set(takes)))
        or (isinstance(value, float) and "float" in takes)
        or (isinstance(value, str) and bool({"str", "Literal"} & set(takes)))
        or (isinstance(value, list | tuple) and bool(_LISTS & set(takes)))
    )
    return "" if fits else " or ".join(dict.fromkeys(_KINDS[part] for part in takes if part != "None"))
