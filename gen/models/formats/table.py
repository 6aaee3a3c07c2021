"""Rename tables: a published checkpoint's names beside ours, read in both directions.

A row is (theirs, ours). `{i}` stands for the number of a block, a final `.*` for `.weight` and `.bias`. Several names on their
side are parts of one tensor of ours, one after the other along its first axis (q, k, v). A row with `{i}` on their side alone
is one tensor of ours that their file repeats in every block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from samplers.lookup import nearest as lookup_nearest

LEAVES = ("weight", "bias")
Row = tuple[Sequence[str], str]  # a str, or several
Table = Sequence[Row]


@dataclass(frozen=True)
class Slot:
    """Where a tensor of theirs belongs: part `part` of `parts` of our tensor `name`."""

    name: str
    part: int = 0
    parts: int = 1


def _leaves(theirs: Sequence[str], ours: str) -> Iterator[tuple[list[str], str]]:
    if not ours.endswith(".*"):
        yield list(theirs), ours
        return
    for leaf in LEAVES:
        yield [name.removesuffix("*") + leaf for name in theirs], ours.removesuffix("*") + leaf


def expand(table: Table, blocks: int) -> dict[str, Slot]:
    """Every name of theirs that the table knows, for a network whose numbered blocks are 0 to blocks - 1."""
    slots: dict[str, Slot] = {}
    for theirs, ours in table:
        rows = list(_leaves((theirs,) if isinstance(theirs, str) else theirs, ours))
        for names, name in rows:
            for i in range(blocks) if "{i}" in names[0] else (0,):
                for part, names_of_part in enumerate(names):
                    key = names_of_part.replace("{i}", str(i))
                    assert key not in slots, f"the table has {key} twice"
                    slots[key] = Slot(name.replace("{i}", str(i)), part, len(names))
    return slots


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the known name that is most like this one, or nothing."""
    near = lookup_nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""
