"""Rewards beside those of the same prompt: samples in groups, one after another (arXiv 2402.03300)."""

from __future__ import annotations

import torch
from torch import Tensor


def advantages(rewards: Tensor, group: int, normalise: bool = True, largest: float = 5.0) -> Tensor:
    """(B,): rewards (B,) less the mean of their group, over the group's deviation (normalise), within -largest and largest.

    Of groups of G samples the mean makes the expected gradient (1 - 1 / G) times that of the reward.
    """
    groups = rewards.unflatten(0, (-1, group))
    centred = groups - groups.mean(1, keepdim=True)
    if normalise:
        centred = centred / (groups.std(1, keepdim=True, correction=0) + 1e-4)
    return torch.clamp(centred.flatten(), -largest, largest)
