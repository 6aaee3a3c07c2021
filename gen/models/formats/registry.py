"""The closed list of formats, and which of them a file has."""

from __future__ import annotations

from collections.abc import Collection

from gen.io.weights import listed
from gen.models.formats import diffusers_dit, diffusers_pixart, dit, pixart, uvit
from gen.models.formats.format import Format
from gen.models.formats.table import nearest

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT for module in (uvit, dit, pixart, diffusers_dit, diffusers_pixart)
}


def find(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"Unknown format {name!r}{nearest(name, FORMATS)}; known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def detect(names: Collection[str]) -> str:
    """The format that has tensors of these names; ValueError where none, or more than one, has."""
    matching = [format.name for format in FORMATS.values() if all(name in names for name in format.signature)]
    if len(matching) == 1:
        return matching[0]
    what = f"fits {' and '.join(matching)}" if matching else f"is of no format that is known ({', '.join(FORMATS)})"
    raise ValueError(f"{what}; its first tensors are {listed(sorted(names)) or 'none'}")
