"""Rename tables: a published checkpoint's names beside ours, read in both directions.

A row is (theirs, ours). `{i}` stands for the number of a block, a final `.*` for `.weight` and `.bias`. Several names on their
side are parts of one tensor of ours, one after the other along its first axis (q, k, v). Several on our side are what one
tensor of theirs holds one after the other; `[k/n]` behind a name of ours is part k of n of it, for parts that lie in another
order there. A row with `{i}` on their side alone is one tensor of ours that their file repeats in every block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from samplers.lookup import nearest as lookup_nearest

LEAVES = ("weight", "bias")
Row = tuple[Sequence[str], Sequence[str]]  # a str, or several, on either side
Table = Sequence[Row]
_PART = re.compile(r"(.+)\[(\d+)/(\d+)\]")


@dataclass(frozen=True)
class Slot:
    """Part `part` of `parts` of our tensor `name`."""

    name: str
    part: int = 0
    parts: int = 1

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The part, as a view."""
        return tensors[self.name].chunk(self.parts)[self.part]


Slots = tuple[Slot, ...]  # where a tensor of theirs belongs: what it holds, one after the other


def swapped(ours: str) -> tuple[str, str]:
    """A tensor of ours whose halves lie the other way round on their side, such as (scale, shift) for (shift, scale)."""
    return f"{ours}[1/2]", f"{ours}[0/2]"


def _leaves(theirs: Sequence[str], ours: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    if not any(".*" in name for name in ours):
        yield list(theirs), list(ours)
        return
    for leaf in LEAVES:
        yield [name.removesuffix("*") + leaf for name in theirs], [name.replace(".*", f".{leaf}") for name in ours]


def _slot(name: str) -> Slot:
    match = _PART.fullmatch(name)
    return Slot(name) if match is None else Slot(match[1], int(match[2]), int(match[3]))


def expand(table: Table, blocks: int, known: Iterable[str] | None = None) -> dict[str, Slots]:
    """Every name of theirs that the table knows, for a network whose numbered blocks are 0 to blocks - 1.

    known: the names of our tensors; what belongs to others is left out.
    """
    slots: dict[str, Slots] = {}
    known = None if known is None else set(known)
    for theirs, ours in table:
        sides = [(side,) if isinstance(side, str) else side for side in (theirs, ours)]
        for names, own in _leaves(*sides):
            for i in range(blocks) if "{i}" in names[0] else (0,):
                here = [_slot(name.replace("{i}", str(i))) for name in own]
                if known is not None and not all(slot.name in known for slot in here):
                    continue
                for part, name in enumerate(names):
                    key = name.replace("{i}", str(i))
                    assert key not in slots, f"the table has {key} twice"
                    slots[key] = (Slot(here[0].name, part, len(names)),) if len(names) > 1 else tuple(here)
    return slots


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean X?' for the known name that is most like this one, or nothing."""
    near = lookup_nearest(name, known)
    return f"; did you mean {near!r}?" if near else ""
