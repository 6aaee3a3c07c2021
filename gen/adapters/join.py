"""Layers for some rows of a weight, such as those for q, k and v, as one layer for all of it.

    LoRA    W + [B_q A_q; B_k A_k; B_v A_v] = W + diag(B_q, B_k, B_v) [A_q; A_k; A_v]

so ranks add up, and no number changes; rows that no layer has get zeros. Pieces of one LoRA share A and keep their rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gen.adapters.delta import AdapterError, Delta, widest

Rows = tuple[int, int] | None


def joined(pieces: Sequence[tuple[Rows, Delta]], size: int) -> Delta:
    """One layer for `size` rows of (rows, its change) pieces that do not overlap; rows None is all of them.

    AdapterError (a part of a sentence) for kinds that have no such sum, and for a DoRA of some rows only."""
    if len(pieces) == 1 and pieces[0][0] is None:
        return pieces[0][1]
    ordered = sorted(((rows or (0, size), delta) for rows, delta in pieces), key=lambda piece: piece[0])
    spans, deltas = [rows for rows, _ in ordered], [delta for _, delta in ordered]
    complete = sum(stop - start for start, stop in spans) == size
    kinds = {delta.kind for delta in deltas}
    doras = {"magnitude" in delta.factors for delta in deltas}
    if doras != {False} and (doras != {True} or not complete):
        raise AdapterError("is a DoRA of some rows only, which cannot be written as one of all rows.")
    first = deltas[0]
    if kinds == {"lora"} and not any("mid" in delta.factors for delta in deltas):
        alike = all(d.factors["down"] is first.factors["down"] and d.scale == first.scale for d in deltas)
        if complete and alike:
            return first.stacked(deltas[1:])
        return _block_diagonal(spans, deltas, size)
    if kinds <= {"full", "bias"}:
        return Delta(_rows(spans, deltas, size))
    raise AdapterError(
        f"is {' and '.join(sorted({d.type for d in deltas}))} of some rows only, which cannot be written as one layer."
    )


def _block_diagonal(spans: Sequence[tuple[int, int]], deltas: Sequence[Delta], size: int) -> Delta:
    if len({delta.scale for delta in deltas}) > 1:
        deltas = [delta.folded() for delta in deltas]
    downs = [delta.factors["down"].flatten(1) for delta in deltas]
    ups = [delta.factors["up"].flatten(1) for delta in deltas]
    rank = sum(len(down) for down in downs)
    up = torch.zeros(size, rank, dtype=_widest(ups))
    column = 0
    for (start, stop), block in zip(spans, ups, strict=True):
        up[start:stop, column : column + block.shape[1]] = block
        column += block.shape[1]
    factors = {"down": torch.cat([down.to(_widest(downs)) for down in downs]), "up": up}
    if "magnitude" in deltas[0].factors:
        factors["magnitude"] = torch.cat([delta.factors["magnitude"].flatten() for delta in deltas])
    return Delta(factors | _rows(spans, deltas, size, ("bias", "up_bias")), deltas[0].scale)


def _rows(
    spans: Sequence[tuple[int, int]], deltas: Sequence[Delta], size: int, names: tuple[str, ...] = ("weight", "bias")
) -> dict[str, Tensor]:
    """The factors of these names that have a row per output, where any piece has them."""
    stacked = {}
    for name in names:
        factors = [delta.factors[name] for delta in deltas if name in delta.factors]
        if factors:
            stacked[name] = rows = torch.zeros(size, *factors[0].shape[1:], dtype=_widest(factors))
            for (start, stop), delta in zip(spans, deltas, strict=True):
                if name in delta.factors:
                    rows[start:stop] = delta.factors[name]
    return stacked


def _widest(tensors: Sequence[Tensor]) -> torch.dtype:
    return widest(tensor.dtype for tensor in tensors)
