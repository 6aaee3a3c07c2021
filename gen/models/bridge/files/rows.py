"""Where every row of a network's tensors comes from: a converter of diffusers is asked once, with numbered rows for weights.

Original layouts differ from diffusers' by names, by projections that are cut or swapped along their rows, and by little else.
So each tensor of a file is put to the converter as a column of row numbers; what comes back says where the rows of every tensor
of the network are. Shapes are then known before anything is read, and a file is read once, in its order, straight to where it
belongs, whether it holds numbers or codes.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
Converter = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of a file's tensor; transposed: of all of it, as columns."""

    source: str
    start: int
    stop: int
    transposed: bool = False


Plan = dict[str, tuple[Piece, ...]]


def row_plan(shapes: Shapes, convert: Converter) -> Plan:
    """Name in the network -> the pieces that it is made of, one below the other. Tensors that the converter leaves out are in
    none. KeyError, ValueError and the like where the names are not what the converter takes."""
    numbered: dict[str, Tensor] = {}
    names: list[str] = []
    starts: list[int] = []
    total = 0
    for name, shape in shapes.items():
        rows = shape[0] if shape else 1
        column = torch.arange(total, total + rows)
        numbered[name] = column.view(rows, *[1] * (len(shape) - 1)) if shape else column[0]
        if rows:
            names.append(name)
            starts.append(total)
        total += rows
    return {target: _pieces(value, names, starts, shapes) for target, value in convert(numbered).items()}


def _pieces(value: Tensor, names: list[str], starts: list[int], shapes: Shapes) -> tuple[Piece, ...]:
    transposed = value.ndim == 2 and value.shape[0] == 1 and value.shape[1] > 1
    numbers = value.reshape(-1)
    breaks = ((numbers[1:] - numbers[:-1]) != 1).nonzero().flatten() + 1
    pieces = []
    for part in numbers.tensor_split(breaks.tolist()):
        first, last = int(part[0]), int(part[-1])
        while first <= last:  # neighbours in the file may follow one another in the network as well
            at = bisect.bisect_right(starts, first) - 1
            name = names[at]
            rows = shapes[name][0] if shapes[name] else 1
            stop = min(last + 1, starts[at] + rows)
            pieces.append(Piece(name, first - starts[at], stop - starts[at], transposed))
            first = stop
    return tuple(pieces)
