"""How many bytes a run holds: counted from its networks before anything trains. Activations come on top."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.optim.kept_state import KeptState
from distill.optim.optimizer import Muon, Optimizer
from distill.optim.precision import product_dtype
from distill.parallel.shards import local

if TYPE_CHECKING:
    from distill.trainer import Trainer

COLUMNS = ("weights", "low precision", "gradients", "optimizer", "averages")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def optimizer_bytes(optimizer: Optimizer) -> int:
    """What the optimiser will hold after its first step: one tensor per matrix for Muon, two and a step count for AdamW, for
    others what they say; under ZeRO of this process's share, with the share itself."""
    total = _bytes(optimizer.copies)
    for part in optimizer.parts:
        for group in part.param_groups:
            for parameter in group["params"]:
                if isinstance(part, KeptState):
                    total += part.bytes_of(parameter)
                else:  # torch's
                    total += local(parameter).nbytes * (1 if isinstance(part, Muon) else 2) + 4 * (not isinstance(part, Muon))
    return total


def rows(trainer: Trainer) -> dict[str, dict[str, int]]:
    """Bytes on one process by network and column. low precision: the copies of the weights that autocast makes in a forward
    pass. Networks beside the roles (autoencoder, text encoder) count as frozen."""
    dtype = product_dtype(trainer.accelerator.device, trainer.config.precision)
    table = {}
    for name, network in trainer.networks.items():
        trained = name in trainer.roles.optimizers
        parameters = [local(p) for p in network.parameters()]
        wide = [p for p in parameters if p.ndim > 1 and p.dtype == torch.float32]  # autocast leaves vectors as they are
        table[name] = {
            "weights": _bytes(network.state_dict().values()),
            "low precision": sum(p.numel() for p in wide) * dtype.itemsize if dtype != torch.float32 else 0,
            "gradients": _bytes(trainer.roles.optimizers[name].gradients) if trained else 0,
            "optimizer": optimizer_bytes(trainer.roles.optimizers[name]) if trained else 0,
            "averages": sum(_bytes(e.network.state_dict().values()) for e in trainer.roles.emas.get(name, {}).values()),
        }
    seen = {id(network) for network in trainer.networks.values()}
    for name, value in vars(trainer.objective).items():
        if isinstance(value, nn.Module) and id(value) not in seen:
            table[name] = {**dict.fromkeys(COLUMNS, 0), "weights": _bytes(value.state_dict().values())}
    return table


def table(trainer: Trainer) -> str:
    """The bytes as text, in MB (10^6 bytes)."""
    counted = rows(trainer)
    counted["total"] = {column: sum(row[column] for row in counted.values()) for column in COLUMNS}
    width = max(len(name) for name in counted) + 2
    lines = [" " * width + "".join(f"{column:>15}" for column in (*COLUMNS, "sum")) + "   MB"]
    for name, row in counted.items():
        values = [*row.values(), sum(row.values())]
        lines.append(f"{name:<{width}}" + "".join(f"{value / 1e6:>15.2f}" for value in values))
    processes = f"on each of {trainer.world} processes, " if trainer.world > 1 else ""
    return "\n".join([*lines, f"{processes}without activations"])
