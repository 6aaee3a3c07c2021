"""Exponential moving averages of weights, kept as a network of their own."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A float32 averaged copy of a network. The copy is never swapped into the live one: it is its own role and file."""

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """average <- decay average + (1 - decay) weights, after `step` completed steps; buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.network.parameters()), [p.detach() for p in network.parameters()], 1 - decay)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)
