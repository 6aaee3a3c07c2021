"""Scaled dot-product attention: one function, several kernels behind it.

Layout (B, L, H, D) everywhere. A backend is a function and a `why_not` that says in a sentence why it cannot serve a call.
Asked for by name, a backend that cannot serve raises with that sentence: nothing falls back silently, no argument is dropped.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.extras import install
from gen.nn import attention_kernels as kernels
from gen.nn.attention_kernels import Lengths, additive
from gen.nn.batch_invariance import call_in_mode, without_mode
from samplers.lookup import nearest

# CPU, half precision, training: up to this many tokens plain matrix products beat the fused kernel, whose backward is slow
SHORT = 1024


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    lengths: Lengths | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale q k^T + bias) v: q (B, Lq, H, D), k and v (B, Lk, H, D) -> (B, Lq, H, D).

    bias: bool (True = attend) or an additive float, broadcastable to (B, H, Lq, Lk). A query that attends to nothing gives 0.
    lengths: (query lengths, key lengths) of sequences packed one after another into B = 1; each sees only its own keys.
    scale: D ** -0.5 unless given.
    backend: auto (see `choose`) or a name of `BACKENDS`.
    Raises ValueError with a reason.
    """
    with without_mode():
        _check(q, k, v, bias, lengths)
        if backend == "auto":
            backend = choose(q, k, v, bias, lengths)
        elif backend not in BACKENDS:
            near = nearest(backend, BACKENDS)
            hint = f" Did you mean {near}?" if near else ""
            raise ValueError(f"Unknown attention backend {backend!r}: choose auto, {', '.join(BACKENDS)}.{hint}")
        elif reason := BACKENDS[backend][1](q, bias, lengths):
            why = f"{reason}. Use backend='auto' or another one."
            raise ValueError(f"Attention backend {backend!r} cannot serve this call: {why}")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
    return BACKENDS[backend][0](q, k, v, bias, lengths, scale)


def choose(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, lengths: Lengths | None = None) -> str:
    """What `auto` runs: on CUDA the first of `PREFERRED` that serves the call; on a CPU math to train on short sequences of
    half precision; else sdpa."""
    if q.device.type == "cuda":
        return next((name for name in PREFERRED if not BACKENDS[name][1](q, bias, lengths)), "sdpa")
    longest = max(q.shape[1], k.shape[1]) if lengths is None else max(*lengths[0], *lengths[1])
    return "math" if q.device.type == "cpu" and q.dtype.itemsize == 2 and q.requires_grad and longest <= SHORT else "sdpa"


def available_backends() -> dict[str, str | None]:
    """Every backend with None, or the reason why it cannot run on this machine."""
    probe = torch.empty(1, 8, 1, 64)
    if torch.cuda.is_available():
        probe = probe.to("cuda", torch.float16)
    return {name: why_not(probe, None, None) for name, (_, why_not) in BACKENDS.items()}


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"Attention takes q (B, Lq, H, D) with k and v (B, Lk, H, D); it was given {shapes}.")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"Attention takes q, k and v of one dtype; it was given {q.dtype}, {k.dtype} and {v.dtype}.")
    if bias is not None:
        full = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if bias.ndim > 4 or any(n not in (1, m) for n, m in zip(bias.shape[::-1], full[::-1], strict=False)):
            raise ValueError(f"The bias must broadcast to (B, H, Lq, Lk) = {full}; it was given {tuple(bias.shape)}.")
        if bias.dtype != torch.bool and not bias.is_floating_point():
            raise ValueError(f"The bias must be bool (True = attend) or floating; it was given {bias.dtype}.")
    if lengths is not None:
        if bias is not None:
            raise ValueError("Packed lengths and a bias cannot be combined: pad the sequences and mask them instead.")
        queries, keys = lengths
        fits = (len(q), len(queries), sum(queries), sum(keys)) == (1, len(keys), q.shape[1], k.shape[1])
        if not fits or min([*queries, *keys], default=0) < 1:
            raise ValueError(
                "Packed sequences need B = 1 and as many query as key lengths, all positive, that add up to Lq and Lk; "
                f"it was given {shapes} with lengths {list(queries)} and {list(keys)}."
            )


def _each_segment(kernel: Callable, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """Packed sequences one by one, each exactly as if alone."""
    parts = zip(q.split(list(lengths[0]), 1), k.split(list(lengths[1]), 1), v.split(list(lengths[1]), 1), strict=True)
    return torch.cat([kernel(*part, None, None, scale) for part in parts], dim=1)


def math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """The equation written out: the oracle for the others, and the fastest on a CPU for short sequences."""
    if lengths is not None:
        return _each_segment(math, q, k, v, lengths, scale)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    scores = (q * scale) @ k.transpose(-2, -1)
    if bias is None:  # PyTorch's softmax of half precision computes in float32 inside, without a float32 copy
        return (scores.softmax(-1) @ v).transpose(1, 2)
    bias, empty = additive(bias, torch.float64 if q.dtype == torch.float64 else torch.float32)
    weights = (scores + bias).softmax(-1).masked_fill(empty, 0.0)
    return (weights.to(v.dtype) @ v).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """PyTorch's fused kernels."""
    if lengths is not None:
        return _each_segment(sdpa, q, k, v, lengths, scale)
    with without_mode():
        if bias is not None:
            bias = bias[(None,) * (4 - bias.ndim)].to(torch.bool if bias.dtype == torch.bool else q.dtype)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return call_in_mode(F.scaled_dot_product_attention, q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


@cache
def _fmha() -> ModuleType | None:
    """xFormers' memory-efficient attention: its successor package mslk where that is real, else xformers itself."""
    for name in ("mslk.attention.fmha", "xformers.ops.fmha"):
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            with contextlib.suppress(ImportError):  # the mslk on the package index can be an empty placeholder
                return importlib.import_module(name)
    return None


@lru_cache(maxsize=32)
def _segments(fmha: ModuleType, queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> object:
    """The mask of packed lengths: it lies on the device, so it is made once and not in every layer of every step."""
    return fmha.attn_bias.BlockDiagonalMask.from_seqlens(list(queries), list(keys), device=device)


def xformers_why_not(q: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    if q.device.type != "cuda":
        return f"xformers has CUDA kernels only and the tensors are on {q.device.type}"
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"xformers computes in float16, bfloat16 or float32, not {q.dtype}"
    if q.dtype == torch.bfloat16 and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "xformers has bfloat16 kernels from compute capability 8.0 on"
    if q.shape[-1] % 8:
        return f"xformers needs a head width that is a multiple of 8, not {q.shape[-1]}"
    return f"it is not installed: {install('xformers')}" if _fmha() is None else None


def xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """xFormers: flash where it can, else cutlass, which takes float32 and any bias; packed lengths without padding."""
    fmha, empty = _fmha(), None
    assert fmha is not None
    mask: Any = None
    # its kernels read 16 bytes at a time along the last axis, from aligned rows
    q, k, v = (x if x.stride(-1) == 1 and not any(s % 8 for s in x.stride()[:-1]) else x.contiguous() for x in (q, k, v))
    if lengths is not None:
        mask = _segments(fmha, tuple(lengths[0]), tuple(lengths[1]), q.device)
    elif bias is not None:
        bias, empty = additive(bias, q.dtype)
        bias = bias.expand(*bias.shape[:-1], k.shape[1])
        mask = F.pad(bias, (0, -k.shape[1] % 8))[..., : k.shape[1]].expand(q.shape[0], q.shape[2], q.shape[1], -1)
    out = fmha.memory_efficient_attention(q, k, v, attn_bias=mask, scale=scale)
    return out if empty is None else out.masked_fill(empty.transpose(1, 2), 0.0)


def flex_why_not(q: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    if q.device.type not in ("cpu", "cuda"):
        return f"flex attention runs on cpu and cuda, not on {q.device.type}"
    return "flex attention has no gradients on a CPU" if q.device.type == "cpu" and q.requires_grad else None


@cache
def _flex(compiled: bool) -> Callable:
    kernel = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    return torch.compile(kernel) if compiled else kernel


def flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """torch's flex attention, compiled on CUDA; bias and lengths are score functions, so no (Lq, Lk) matrix is stored."""
    change, empty = None, None
    if lengths is not None:
        owner_q, owner_k = (torch.arange(len(n)).repeat_interleave(torch.tensor(n)).to(q.device) for n in lengths)

        def change(score, b, h, i, j):
            return torch.where(owner_q[i] == owner_k[j], score, -torch.inf)

    elif bias is not None:
        bias, empty = additive(bias, torch.float32)
        bias = bias.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])

        def change(score, b, h, i, j):
            return score + bias[b, h, i, j]

    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    out = _flex(q.is_cuda)(q, k, v, score_mod=change, scale=scale).transpose(1, 2)
    return out if empty is None else out.masked_fill(empty.transpose(1, 2), 0.0)


# name -> (kernel, why it cannot serve a call)
BACKENDS: dict[str, tuple[Callable[..., Tensor], Callable[..., str | None]]] = {
    "math": (math, lambda *_: None),
    "sdpa": (sdpa, lambda *_: None),
    "xformers": (xformers, xformers_why_not),
    "flex": (flex, flex_why_not),
    "flash": (kernels.flash, kernels.flash_why_not),
    "flash3": (kernels.flash3, kernels.flash3_why_not),
    "sage": (kernels.sage, kernels.sage_why_not),
    "cudnn": (kernels.cudnn, kernels.cudnn_why_not),
}
# Of `auto` on CUDA, in this order: who installed FlashAttention meant it to be used, and its kernels are newer than those that
# PyTorch and xFormers bring; xFormers takes float32 and any bias as well. Not among them: sage, which computes in fewer bits;
# cudnn, which sdpa chooses itself where PyTorch finds it faster; flex, which is compiled for every shape.
PREFERRED = ("flash3", "flash", "xformers")
PACKING = PREFERRED  # those for which text is packed: they see no padding
