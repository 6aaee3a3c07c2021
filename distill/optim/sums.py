"""Sums over all weights of a network, whole, in shards or in shares of flat ones, for optimisers that adapt one rate to all."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from distill.parallel.shards import is_sharded


def total(terms: Iterable[tuple[Tensor, Tensor]], over_shares: bool) -> Tensor:
    """The sum of (parameter, number of this process's part of it), the same on all processes, as float64 of any one shape.

    over_shares: parameters are this process's shares of flat ones.
    """
    whole: list[Tensor] = []
    cut: list[Tensor] = []
    mesh = None
    for parameter, term in terms:
        if is_sharded(parameter):
            mesh = parameter.device_mesh  # type: ignore[attr-defined]  # a DTensor's
        (cut if over_shares or is_sharded(parameter) else whole).append(term.double())
    parts = [torch.stack(numbers).sum(0) for numbers in (whole, cut) if numbers]
    if cut:
        dist.all_reduce(parts[-1], group=mesh.get_group() if mesh is not None else None)
    return torch.stack(parts).sum(0)
