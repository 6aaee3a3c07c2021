"""Whole tensors and shards of them, whole networks and wrapped ones.

Sharded tensors are DTensors: `full` collects one, `shard_like` cuts one, `local` is this process's part. In a single process
every function here does nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def in_shards(network: nn.Module) -> bool:
    """Its parameters are at times whole, in the middle of things."""
    return hasattr(network, "set_requires_gradient_sync")  # FSDP2's


def local(tensor: Tensor) -> Tensor:
    """This process's part, which shares memory with the whole."""
    sharded: Any = tensor
    return sharded.to_local() if is_sharded(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. Every process must call this alike."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_sharded(tensor) else tensor


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, on the device and with the layout of another of its shape."""
    value = value.to(like.device)
    if not is_sharded(like):  # in the same order in memory: fused kernels take that for granted
        return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    layout: Any = like
    return distribute_tensor(value, layout.device_mesh, layout.placements, src_data_rank=None)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside a wrapper for data-parallel training, for calls that need no gradients."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def detached_weights(network: nn.Module) -> Callable[..., Any]:
    """The unwrapped network's function, differentiable in its arguments alone.

    Of a sharded network in its weights as well, as its own hooks must gather them: whoever trains must clear those gradients.
    """
    network = unwrap(network)
    if in_shards(network):
        return network
    weights = {name: value.detach() for name, value in network.named_parameters()}
    return lambda *args: functional_call(network, weights, args)


# ---- whole networks ----


def whole_state(network: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """A network's state dict with every shard collected; every process must call this alike, and those that do not `keep` let
    go of each tensor before the next."""
    return collected(network.state_dict(), keep)


def collected(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors with every shard collected, on the CPU where they were in shards; nothing where they are not to be kept."""
    whole = {}
    for name, tensor in state.items():
        value = full(tensor.detach())  # all processes take part
        if keep:
            whole[name] = value.cpu() if is_sharded(tensor) else value
        del value
    return whole


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a network, in place; ValueError where names or shapes are not the network's."""
    own = network.state_dict()
    different = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
    if different:
        raise ValueError(f"weights and network differ in {', '.join(different[:5])}")
    with torch.no_grad():
        for name, tensor in own.items():
            local(tensor.detach()).copy_(local(shard_like(tensors[name], tensor)))


def copy_on_cpu(network: nn.Module) -> nn.Module:
    """A copy to fill and export later."""
    return copy.deepcopy(network).to("cpu").eval()
