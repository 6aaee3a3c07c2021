"""The derivative of a network's output along a direction, without a graph: what continuous-time methods are trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

How = Literal["forward", "difference"]


@torch.no_grad()
def along(
    function: Callable[..., Tensor], at: Sequence[Tensor], direction: Sequence[Tensor], how: How = "forward", step: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """(f(at), d/dh f(at + h direction) at h = 0), both without gradients and outside autocast: a derivative in half precision
    is mostly rounding.

    forward: forward-mode differentiation, exact. difference: the central difference over `step`, two evaluations more, for
    networks whose kernels have no forward mode and for sharded weights; its error is O(step^2).
    """
    with torch.autocast(at[0].device.type, enabled=False):
        if how == "forward":
            return torch.func.jvp(function, tuple(at), tuple(direction))
        ends = [function(*(a + sign * step * d for a, d in zip(at, direction, strict=True))) for sign in (1, -1)]
        return function(*at), (ends[0] - ends[1]) / (2 * step)


def plain_attention(network: nn.Module, how: How) -> None:
    """Have a network compute attention by plain products: the fused kernels have no forward mode."""
    if how == "forward" and hasattr(network, "attention_backend"):
        network.attention_backend = "math"
