"""How much a second loss must count for its gradient to be as large as the first one's."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_ratio(reference: Tensor, other: Tensor, at: Tensor, low: float = 0.0, high: float = 1e4) -> Tensor:
    """|d reference / d at| / |d other / d at|, kept within low and high; 1 where no graph is built.

    reference, other: scalars, mean losses. at: what both depend on; a network's output rather than a weight of its, which
    wrappers of data-parallel training guard.

    Source: arXiv 2012.09841, equation 7, which takes the gradient at the last layer's weight.
    """
    if not torch.is_grad_enabled():
        return torch.ones((), device=at.device)
    first, second = (torch.autograd.grad(loss, at, retain_graph=True)[0].norm() for loss in (reference, other))
    return (first / second.clamp(min=torch.finfo(second.dtype).tiny)).clamp(low, high).detach()
