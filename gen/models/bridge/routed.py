"""Attention of diffusers' networks by our backends (`gen.nn.attention`).

All of their softmax attention ends in PyTorch's function, from their attention processors and from their dispatcher alike.
While a network is called, that function leads to ours; so one switch serves every family, and nothing of the network changes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gen.nn.attention import attention

OWN = "diffusers"  # the backend that leaves attention as it is


class RoutedAttention(TorchFunctionMode):
    """While it is entered, `F.scaled_dot_product_attention` is computed by a backend of ours."""

    def __init__(self, backend: str):
        super().__init__()
        self.backend = backend

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return routed(self.backend, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def routing(backend: str) -> AbstractContextManager[Any]:
    """The mode of a backend; nothing for diffusers' own."""
    return nullcontext() if backend == OWN else RoutedAttention(backend)


def routed(
    backend: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """PyTorch's function by `backend`: (B, H, L, D) or (B, L, D). ValueError for what ours does not compute: dropout."""
    if dropout_p:
        raise ValueError(
            f"Attention by {backend!r} has no dropout, and {dropout_p} was asked for; leave attention_backend out."
        )
    if query.ndim == 3:
        q, k, v = (part.unsqueeze(1) for part in (query, key, value))
        mask = attn_mask if attn_mask is None or attn_mask.ndim < 3 else attn_mask.unsqueeze(1)
        return routed(backend, q, k, v, mask, dropout_p, is_causal, scale, enable_gqa).squeeze(1)
    if enable_gqa and key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = (part.repeat_interleave(times, dim=1) for part in (key, value))
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))
    return attention(q, k, v, attn_mask, scale=scale, backend=backend).transpose(1, 2)
