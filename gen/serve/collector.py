"""Calls of several runs as few forward passes, and every run's rows back.

Rows are computed as each alone (`gen.nn.batch_invariance`) where the runs ask for that, as they do on a CPU: what a run gets
does not depend, to the last bit, on what goes with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gen.adapters.rows import Segments
from gen.generator import Generator
from gen.models.decoding import free, is_out_of_memory
from gen.models.model import Model
from gen.nn.batch_invariance import batch_invariance
from gen.serve.sharing import Alone, DecodeCall, NetworkCall, Raised, SharedCall
from samplers.denoiser import Condition, Context, adapters_key

KEPT = 16  # joined conditions that a model keeps, with what its network made of them


@dataclass
class Passes:
    """What was done, for metrics. rows: of the forward passes; shared: of those with others; alone: reason -> calls."""

    count: int = 0
    rows: int = 0
    shared: int = 0
    alone: dict[str, int] = field(default_factory=dict)

    def add(self, group: Sequence[SharedCall]) -> None:
        self.count += 1
        rows = sum(call.rows for call in group)
        self.rows += rows
        self.shared += rows if len(group) > 1 else 0

    def add_alone(self, why: str) -> None:
        self.alone[why] = self.alone.get(why, 0) + 1


@dataclass
class Collector:
    """The forward passes of one model.

    max_rows: of a pass, at most, unless one run has more.
    """

    generator: Generator
    max_rows: int
    passes: Passes = field(default_factory=Passes)
    _joined: OrderedDict[tuple[int, ...], tuple[tuple[Condition, ...], Condition, dict]] = field(default_factory=OrderedDict)

    def answers(self, calls: Sequence[SharedCall]) -> list[Any]:
        """For every call a tensor of its rows, `Alone` or `Raised`; groups go in the order of their first calls."""
        answers: list[Any] = [None] * len(calls)
        for group in self.groups(calls):
            if calls[group[0]].key is None:
                call = calls[group[0]]
                self.passes.add_alone(call.why if isinstance(call, NetworkCall) else "decoding")
                answers[group[0]] = Alone
                continue
            for place, answer in zip(group, self._together([calls[place] for place in group]), strict=True):
                answers[place] = answer
        return answers

    def groups(self, calls: Sequence[SharedCall]) -> list[list[int]]:
        """Places of calls that go together, `max_rows` rows at the most."""
        open_groups: dict[Hashable, list[int]] = {}
        groups: list[list[int]] = []
        for place, call in enumerate(calls):
            key = None if call.key is None else (type(call), call.key)
            group = None if key is None else open_groups.get(key)
            if group is None or sum(calls[other].rows for other in group) + call.rows > self.max_rows:
                group = []
                groups.append(group)
                if key is not None:
                    open_groups[key] = group
            group.append(place)
        return groups

    def _together(self, group: list[Any]) -> list[Any]:
        """One pass; where it fails, every call by itself, so that each has its own error."""
        failed: Exception
        try:
            with torch.no_grad(), batch_invariance(group[0].invariant):
                made = self._decode(group) if isinstance(group[0], DecodeCall) else self._forward(group)
        except Exception as error:
            failed = error
        else:
            self.passes.add(group)
            if len(group) == 1:
                return [made]
            parts = made.split([call.rows for call in group])
            return [part.clone() for part in parts]  # memory of its own, where numbers alone would lie
        if is_out_of_memory(failed):
            failed.__traceback__ = None  # it holds the pass's tensors
            free(self.generator.device)
        if len(group) == 1:
            return [Raised(failed)]
        middle = (len(group) + 1) // 2
        return [*self._together(group[:middle]), *self._together(group[middle:])]

    def _forward(self, group: list[NetworkCall]) -> Tensor:
        network = self.generator.denoiser.network
        group[0].model.tell_null()
        if len(group) == 1:
            call = group[0]
            return network(call.x, call.time, call.condition, call.context)
        x, time = joined([call.x for call in group]), torch.cat([call.time for call in group])
        condition, store = self._condition(group)
        adapters: Any = group[0].context.adapters
        if len({adapters_key(call.context.adapters) for call in group}) > 1 or not _one_for_all(adapters):
            adapters = Segments((call.rows, call.context.adapters) for call in group)
        return network(x, time, condition, Context(adapters=adapters, store=store))

    def _condition(self, group: list[NetworkCall]) -> tuple[Condition, dict]:
        """The conditions one after another, the same object for the same ones, so that what a network makes of them is kept."""
        each = tuple(call.condition for call in group)
        key = tuple(id(condition) for condition in each)
        if key not in self._joined:
            self._joined[key] = each, each[0].cat(each[1:]), {}
        self._joined.move_to_end(key)
        while len(self._joined) > KEPT:
            self._joined.popitem(last=False)
        return self._joined[key][1:]

    def _decode(self, group: list[DecodeCall]) -> Tensor:
        return Model.decode(self.generator, joined([call.x for call in group]), group[0].size)

    def forget(self) -> None:
        """Let go of what was kept for runs that are over."""
        self._joined.clear()


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors whose rows lie alike in memory as one in which they lie so too."""
    if len(tensors) == 1:
        return tensors[0]
    first, rows = tensors[0], sum(map(len, tensors))
    whole = torch.empty_strided((rows, *first.shape[1:]), _strides(first, rows), dtype=first.dtype, device=first.device)
    return torch.cat(list(tensors), out=whole) if whole.is_contiguous() else whole.copy_(torch.cat(list(tensors)))


def _strides(like: Tensor, rows: int) -> tuple[int, ...]:
    """Those of `rows` rows that lie one after another, each as in a tensor."""
    extent = 1 + sum((side - 1) * step for side, step in zip(like.shape[1:], like.stride()[1:], strict=True))
    return (max(extent, 1), *like.stride()[1:])


def _one_for_all(adapters: Any) -> bool:
    """One weight for each adapter, rather than weights by sample."""
    return isinstance(adapters, Mapping) and all(isinstance(weight, int | float) for weight in adapters.values())
