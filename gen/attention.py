"""Scaled dot-product attention: one function, several kernels behind it.

Layout (B, L, H, D) everywhere. A backend is a function and a `why_not` that says in a sentence why it cannot serve a call;
a backend asked for by name that cannot serve raises with that sentence. Nothing falls back silently, no argument is dropped.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

Lengths = tuple[Sequence[int], Sequence[int]]
# On a CPU, plain matrix products beat the fused kernel for short sequences: a little forwards, 1.5 times in training.
SHORT = 300


def math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """softmax(q k^T scale + bias) v, written out: the oracle. The softmax is at least float32; fully masked rows give 0."""
    if lengths is not None:
        return _each_segment(math, q, k, v, lengths, scale)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = (q * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias
    # a bfloat16 or float16 softmax accumulates in float32 inside the kernel, on CPU and CUDA alike
    weights = scores.softmax(-1)
    if bias is not None:
        weights = weights.masked_fill(scores.amax(-1, keepdim=True) == -torch.inf, 0.0)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def math_why_not(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    return None


def _each_segment(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """Packed sequences one by one: no work on pairs that do not see each other, and every segment exactly as if alone."""
    parts = zip(q.split(list(lengths[0]), 1), k.split(list(lengths[1]), 1), v.split(list(lengths[1]), 1), strict=True)
    return torch.cat([kernel(*part, None, None, scale) for part in parts], dim=1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """PyTorch's fused kernels."""
    if lengths is not None:
        return _each_segment(sdpa, q, k, v, lengths, scale)
    if bias is not None:
        bias = bias if bias.dtype == torch.bool else bias.to(q.dtype)
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


def sdpa_why_not(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    return None


@dataclass(frozen=True)
class Backend:
    run: Callable[..., Tensor]
    why_not: Callable[..., str | None]


BACKENDS = {"math": Backend(math, math_why_not), "sdpa": Backend(sdpa, sdpa_why_not)}


def attention(q, k, v, bias=None, *, lengths=None, scale=None, backend="auto"):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "auto":
        backend = "math" if k.shape[1] < SHORT else "sdpa"
    return BACKENDS[backend].run(q, k, v, bias, lengths, scale)
