"""Gradient checkpointing: a block's inside is computed again in the backward pass, so that only its input is kept."""

from __future__ import annotations

from torch import nn

from distill.run_folder import TrainingError


def enable(network: nn.Module) -> int:
    """Mark the blocks of a network of `gen.backbones`; returns how many there are. TrainingError where there is none.
    A network that holds others says itself how, by a method `enable_recompute`."""
    if hasattr(network, "enable_recompute"):
        return network.enable_recompute()  # type: ignore[operator]
    blocks = [
        module
        for name, child in network.named_modules()
        if isinstance(child, nn.ModuleList) and name.rpartition(".")[2].endswith("blocks")
        for module in child
    ]
    blocks += [module for name, module in network.named_modules() if name.rpartition(".")[2] == "mid_block"]
    if not blocks or not type(network).__module__.startswith("gen.backbones"):
        raise TrainingError(
            f"gradient_checkpointing is for networks of blocks (uvit, dit, dimr), not {type(network).__name__}; leave it out."
        )
    for block in blocks:
        block.recompute = True
    return len(blocks)
