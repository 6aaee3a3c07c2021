"""Frozen copies of a network that trains: averages that make targets, teachers of the next stage. Checkpoints hold them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.parallel.shards import fill
from distill.types import Role


def frozen_copy(network: nn.Module) -> Role:
    """The role of a frozen copy."""
    return Role(copy.deepcopy(network).eval().requires_grad_(False), trains=False, ema=False, follows=True)


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) network, over all floating tensors; 0 copies. Both whole, or both in shards."""
    for averaged, current in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if averaged.is_floating_point() and decay:
            # arXiv 2303.01469, equation 8: theta^- <- mu theta^- + (1 - mu) theta
            averaged.lerp_(current.to(averaged), 1 - decay)
        else:
            averaged.copy_(current)


def copies_state(copies: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of networks by name, as "<network>.<tensor>"."""
    return {f"{role}.{name}": value for role, network in copies.items() for name, value in network.state_dict().items()}


def load_copies(copies: Mapping[str, nn.Module], state: Mapping[str, Tensor], owner: str) -> None:
    """Put back what `copies_state` gave. ValueError for a network that is not there; owner: whose networks they are."""
    unknown = sorted(name for name in state if name.partition(".")[0] not in copies)
    if unknown:
        raise ValueError(f"{owner} keeps no {unknown[0]!r}, which the checkpoint holds.")
    for role, network in copies.items():
        own = {name.partition(".")[2]: value for name, value in state.items() if name.partition(".")[0] == role}
        fill(network, own)
