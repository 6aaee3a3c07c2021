"""The derivative of a network's output along a direction, without a graph: what continuous-time methods are trained with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

How = Literal["forward", "difference"]


@torch.no_grad()
def jvp(
    function: Callable[..., Tensor], at: Sequence[Tensor], direction: Sequence[Tensor], how: How = "forward", step: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """(f(at), d/dh f(at + h direction) at h = 0), both without gradients and outside autocast: a derivative in half precision
    is mostly rounding.

    forward: forward-mode differentiation, exact. difference: the central difference over `step`, two evaluations more, for
    networks whose kernels have no forward mode and for sharded weights; its error is O(step^2).
    """
    with torch.autocast(at[0].device.type, enabled=False):
        if how == "forward":
            result: Any = torch.func.jvp(function, tuple(at), tuple(direction))
            return result
        ends = [function(*(a + sign * step * d for a, d in zip(at, direction, strict=True))) for sign in (1, -1)]
        return function(*at), (ends[0] - ends[1]) / (2 * step)


def prepare_jvp(network: nn.Module, how: How, dtype: torch.dtype | None = None) -> How:
    """Have a network, or the one that a LoRA is on, compute attention by plain products, as the fused kernels have no forward
    mode; returns how its derivative is to be taken. A network of another library chooses its own kernels: there it is
    the difference, and a warning says so. ValueError for weights of a dtype in which a difference is rounding."""
    base = getattr(network, "base", network)
    if how == "forward" and getattr(base, "bridged", False):
        warnings.warn(
            "The derivative is taken as a difference of two evaluations: a diffusers network has attention kernels without a "
            "forward-mode derivative. Set objective.derivative to difference to expect that.",
            stacklevel=2,
        )
        how = "difference"
    if how == "forward":
        base.attention_backend = "math"
    elif dtype not in (None, torch.float32, torch.float64):
        raise ValueError(
            f"A derivative as a difference drowns in the rounding of {str(dtype).removeprefix('torch.')}: set teacher.dtype to "
            "float32."
        )
    return how
