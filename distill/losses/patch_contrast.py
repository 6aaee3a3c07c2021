"""PatchNCE: a patch of a translated picture is to be told by the patch of the original at its place, among others of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patch_nce(queries: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """(B,): the mean over P patches of -log softmax_j(q_i . k_j / temperature) at j = i.

    queries, keys: (B, P, D) of unit length, of the translated picture and of the original at the same places, whose order does
    not matter. Negatives are the other patches of the same picture. No gradient reaches the keys.
    Source: arXiv 2007.15651, equations 3 and 4.
    """
    logits = torch.einsum("bpd,bqd->bpq", queries, keys.detach()) / temperature
    targets = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    # arXiv 2007.15651, equation 3
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(len(logits), -1).mean(1)


def patches_of(maps: Tensor, places: Tensor) -> Tensor:
    """(B, P, C): the features of maps (B, C, h, w) at places (B, P), counted row by row."""
    rows = maps.flatten(2).mT
    return rows.gather(1, places[..., None].expand(-1, -1, rows.shape[2]))
