"""Closed tables by name: any spelling is found, and a wrong one gets the nearest suggested."""

from __future__ import annotations

import difflib
from typing import Any


def plain(name: str) -> str:
    """One spelling for all: "DPM++ 2M SDE" and "dpmpp_2m_sde" are both "dpmpp2msde"."""
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())


def spellings_of(table: dict[str, Any]) -> dict[str, str]:
    """Every spelling in a table, plain -> the row's name. Rows have `name`, `aliases` and `options`."""
    return {plain(spelling): name for name, info in table.items() for spelling in (name, *info.aliases)}


def find(table: dict[str, Any], name: str, kind: str) -> Any:
    """The row of a name or alias. ValueError, with the nearest name, if there is none; `kind` says what the table is of."""
    if not isinstance(name, str):
        raise ValueError(f"A {kind} is chosen by its name, got {name!r}. Known: {', '.join(table)}.")
    spellings = spellings_of(table)
    if found := spellings.get(plain(name)):
        return table[found]
    near = difflib.get_close_matches(plain(name), spellings, n=1, cutoff=0.6)
    hint = f": did you mean {spellings[near[0]]!r}?" if near else "."
    raise ValueError(f"Unknown {kind} {name!r}{hint} Known: {', '.join(table)}.")


def check_options(info: Any, options: dict[str, Any], kind: str) -> None:
    """ValueError for an option that the row does not have."""
    for name in options:
        if name not in info.options:
            takes = f"it takes {', '.join(info.options)}" if info.options else "it takes none"
            raise ValueError(f"The {kind} {info.name!r} has no option {name!r}: {takes}.")
