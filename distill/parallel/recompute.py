"""Gradient checkpointing: a block's inside is computed again in the backward pass, so that only its input is kept."""

from __future__ import annotations

from typing import Any

from torch import nn

from gen.nn.backbones.recompute import checkpointed


def enable(network: nn.Module) -> int:
    """Let a network keep the inputs of its blocks alone; returns how many modules have it, 0 for a network without such blocks.

    Found are the networks of `gen.nn.backbones` and diffusers' own, also inside of others, whole or in shards. One that is made
    from a network that it does not hold as a module says itself how, by a method `enable_recompute`.
    """
    if hasattr(network, "enable_recompute"):
        return network.enable_recompute()  # type: ignore[operator]
    if hasattr(network, "enable_gradient_checkpointing"):
        given: Any = network
        if not getattr(network, "_supports_gradient_checkpointing", False):
            return 0
        given.enable_gradient_checkpointing(checkpointed)
        return 1
    if not any(base.__module__.startswith("gen.nn.backbones") for base in type(network).__mro__):
        return sum(enable(child) for child in network.children())
    blocks = [
        module
        for name, child in network.named_modules()
        if isinstance(child, nn.ModuleList) and name.rpartition(".")[2].endswith("blocks")
        for module in child
    ]
    blocks += [module for name, module in network.named_modules() if name.rpartition(".")[2] == "mid_block"]
    for block in blocks:
        block.recompute = True  # type: ignore[assignment]
    return len(blocks)
