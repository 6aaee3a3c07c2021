"""Which samples of a batch are of one distribution: those of one condition."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.types import Batch


def alike(batch: Batch, count: int, device: torch.device, by_caption: bool = True) -> Tensor:
    """(G, M, M) bool: which samples of a group of M = count, one after another, have the same condition.

    by_caption: captions tell samples apart, where there are any; else labels do.
    """
    if by_caption and batch.captions is not None:
        numbers = {caption: i for i, caption in enumerate(dict.fromkeys(batch.captions))}
        keys = torch.tensor([numbers[caption] for caption in batch.captions], device=device)
    else:
        keys = torch.zeros(len(batch), device=device) if batch.labels is None else batch.labels.to(device)
    keys = keys.unflatten(0, (-1, count))
    return keys[:, :, None] == keys[:, None]
