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
        """average <- decay average + (1 - decay) weights, after `step` completed steps.

        Floating buffers, such as the statistics of batch norms, belong to the weights they were measured with and are
        averaged alike; counters are copied.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.network.state_dict().values(), network.state_dict().values(), strict=True))
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [theirs.detach() for _, theirs in floating], 1 - decay)
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)
