"""What an optimiser keeps of a parameter, as named tensors that a checkpoint holds, and back.

torch's own keep nothing but tensors of each parameter. Others keep numbers of a whole group besides (a step, a distance), and
tensors in forms of their own: they inherit `KeptState`. Such numbers are saved with every parameter of the group, so that a
run goes on where parameters are grouped otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from distill.parallel.shards import local, shard_like


class KeptState:
    """Beside torch.optim.Optimizer in the bases of an optimiser.

    shared: names of the numbers that a group keeps.
    slots: how many numbers it keeps of each one of a parameter.
    over_shares: its parameters are this process's shares of flat ones, and what it sums it must sum over processes (ZeRO).
    """

    shared: ClassVar[tuple[str, ...]] = ()
    slots: ClassVar[int] = 2
    over_shares = False

    def read(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """slot -> tensor, in shards where the parameter is; numbers as float64 or int64 of no dimension."""
        numbers = {name: group[name] for name in self.shared if name in group}
        return {**self.tensors(parameter), **{name: _number(value) for name, value in numbers.items()}}

    def write(self, group: dict[str, Any], parameter: Tensor, slots: Mapping[str, Tensor]) -> None:
        """Put back what `read` gave."""
        group.update({name: self.number(slots[name], parameter) for name in self.shared if name in slots})
        self.put({name: value for name, value in slots.items() if name not in self.shared}, parameter)

    def tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        own: Any = self
        return dict(own.state.get(parameter, {}))

    def put(self, slots: Mapping[str, Tensor], parameter: Tensor) -> None:
        own: Any = self
        own.state[parameter].update(slots)

    def number(self, value: Tensor, parameter: Tensor) -> Any:
        """A group's number as this optimiser computes with it."""
        return value.item()

    def bytes_of(self, parameter: Tensor) -> int:
        """What it will hold of a parameter after its first step."""
        return self.slots * local(parameter).nbytes


def _number(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.clone()  # parameters of a group share it, and files hold no tensor twice
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)


def read_slots(part: Any, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    """What an optimiser keeps of a parameter that it has stepped; nothing of others."""
    if parameter not in part.state:
        return {}
    return part.read(group, parameter) if isinstance(part, KeptState) else dict(part.state[parameter])


def write_slots(part: Any, group: dict[str, Any], parameter: Tensor, slots: Mapping[str, Tensor]) -> None:
    """Put back what `read_slots` gave, in shards where the parameter is."""
    if isinstance(part, KeptState):
        part.write(group, parameter, slots)
    else:
        part.state[parameter].update(slots)


def placed(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor where the optimiser wants it: cut as the parameter if it has its shape, and else beside it."""
    return shard_like(value.clone(), parameter) if value.shape == parameter.shape else value.clone().to(parameter.device)
