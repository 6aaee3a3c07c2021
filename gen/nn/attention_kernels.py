"""Attention kernels of other packages: FlashAttention 2 and 3, SageAttention, cuDNN through PyTorch.

A kernel takes (q, k, v, bias, lengths, scale) in the layout of `gen.nn.attention`, (B, L, H, D); its `why_not` says in a
sentence why it cannot serve a call. Packages are looked up where they are used, and imported once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._guards import detect_fake_mode

Lengths = tuple[Sequence[int], Sequence[int]]
HALF = (torch.float16, torch.bfloat16)


def additive(bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A bias as an additive 4-d one without fully masked rows, and which rows those were: their softmax would be NaN."""
    bias = bias[(None,) * (4 - bias.ndim)]
    if bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=dtype).masked_fill_(~bias, -torch.inf)
    empty = bias.amax(-1, keepdim=True) == -torch.inf
    return bias.to(dtype).masked_fill(empty, 0.0), empty


_offsets: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
KEPT = 64  # of those


def offsets(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where packed sequences begin and end, (n + 1,) int32: on the device, so it is made once and not in every layer. Those
    without values, of a plan, are made anew: they are of no use to a run, and a run's none to them."""
    planned = detect_fake_mode() is not None
    if not planned and (known := _offsets.get((lengths, device))) is not None:
        return known
    made = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    if not planned and type(made) is Tensor:
        if len(_offsets) >= KEPT:
            _offsets.pop(next(iter(_offsets)), None)
        _offsets[lengths, device] = made
    return made


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a CUDA device."""
    return torch.cuda.get_device_capability(device)


@cache
def package(name: str) -> ModuleType | None:
    """An optional package; None where it is not installed, or cannot be loaded beside this torch."""
    if importlib.util.find_spec(name.split(".")[0]) is None:
        return None
    with contextlib.suppress(ImportError, OSError):  # of a binary that was built for another torch
        return importlib.import_module(name)
    return None


def _why_no_half(name: str, q: Tensor, bias: Tensor | None, lowest: tuple[int, int], widest: int) -> str | None:
    """What kernels of half precision without a bias ask for."""
    if q.device.type != "cuda":
        return f"{name} has CUDA kernels only and the tensors are on {q.device.type}"
    if q.dtype not in HALF:
        return f"{name} computes in float16 or bfloat16, not {q.dtype}"
    if capability(q.device) < lowest:
        return f"{name} has kernels from compute capability {lowest[0]}.{lowest[1]} on"
    if bias is not None:
        return f"{name} takes no mask or bias"
    return f"{name} takes heads of at most {widest} channels, not {q.shape[-1]}" if q.shape[-1] > widest else None


def _missing(name: str, how: str) -> str | None:
    return f"it is not installed: {how}" if package(name) is None else None


def _contiguous(*parts: Tensor) -> list[Tensor]:
    """Kernels read rows of channels that lie side by side."""
    return [part if part.stride(-1) == 1 else part.contiguous() for part in parts]


def _call_packed(func: Any, varlen: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths | None, **options: Any) -> Tensor:
    """A kernel's functions of whole batches and of packed sequences; earlier versions give the log of the sum beside it."""
    q, k, v = _contiguous(q, k, v)
    if lengths is None:
        out = func(q, k, v, **options)
        return out[0] if isinstance(out, tuple) else out
    return _packed(varlen, q, k, v, lengths, **options)


def flash_why_not(q: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    reason = _why_no_half("FlashAttention", q, bias, (8, 0), 256)
    return reason or _missing("flash_attn", "pip install flash-attn --no-build-isolation")


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """FlashAttention 2 (arXiv 2307.08691); packed lengths without padding."""
    module: Any = package("flash_attn")
    kernels = module.flash_attn_func, module.flash_attn_varlen_func
    return _call_packed(*kernels, q, k, v, lengths, dropout_p=0.0, softmax_scale=scale, causal=False)


def flash3_why_not(q: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    if reason := _why_no_half("FlashAttention 3", q, bias, (9, 0), 256):
        return reason
    if capability(q.device)[0] != 9:
        return "FlashAttention 3 is made for Hopper, compute capability 9"
    return _missing("flash_attn_interface", "it is built from the folder hopper of github.com/Dao-AILab/flash-attention")


def flash3(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """FlashAttention 3 (arXiv 2407.08608), for Hopper; packed lengths without padding."""
    module: Any = package("flash_attn_interface")
    return _call_packed(
        module.flash_attn_func, module.flash_attn_varlen_func, q, k, v, lengths, softmax_scale=scale, causal=False
    )


def sage_why_not(q: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    if reason := _why_no_half("SageAttention", q, bias, (8, 0), 128):
        return reason
    if torch.is_grad_enabled() and q.requires_grad:
        return "SageAttention has no gradients"
    return _missing("sageattention", "pip install sageattention")


def sage(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """SageAttention (arXiv 2411.10958): q k^T in 8 bits, so its results are near those of others, not equal to rounding."""
    module: Any = package("sageattention")
    q, k, v = _contiguous(q, k, v)
    if lengths is None:
        return module.sageattn(q, k, v, tensor_layout="NHD", is_causal=False, sm_scale=scale)
    return _packed(module.sageattn_varlen, q, k, v, lengths, is_causal=False, sm_scale=scale)


def _packed(kernel: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, **options: Any) -> Tensor:
    """A kernel of packed sequences: (L, H, D), with where they begin and the longest of them."""
    queries, keys = (tuple(one) for one in lengths)
    places = {
        "cu_seqlens_q": offsets(queries, q.device),
        "cu_seqlens_k": offsets(keys, q.device),
        "max_seqlen_q": max(queries),
        "max_seqlen_k": max(keys),
    }
    out = kernel(q[0], k[0], v[0], **places, **options)
    return (out[0] if isinstance(out, tuple) else out)[None]


def cudnn_why_not(q: Tensor, bias: Tensor | None, lengths: Lengths | None) -> str | None:
    if reason := _why_no_half("cuDNN's attention", q, None, (8, 0), 256):
        return reason
    if lengths is not None:
        return "cuDNN's attention takes no packed lengths here"
    if q.shape[-1] % 8:
        return f"cuDNN's attention needs a head width that is a multiple of 8, not {q.shape[-1]}"
    return None if _cudnn_serves(q, bias) else "cuDNN has no kernel for this shape, mask and device"


def _cudnn_serves(q: Tensor, bias: Tensor | None) -> bool:
    heads_first = q.transpose(1, 2)
    mask = None if bias is None else additive(bias, q.dtype)[0]
    params = torch.backends.cuda.SDPAParams(heads_first, heads_first, heads_first, mask, 0.0, False, False)
    return torch.backends.cuda.can_use_cudnn_attention(params)


def cudnn(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lengths: Lengths | None, scale: float) -> Tensor:
    """cuDNN's fused attention and no other, where `sdpa` leaves the choice to PyTorch."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    empty = None
    if bias is not None:
        bias, empty = additive(bias, q.dtype)
        bias = bias.expand(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    q, k, v = (part.transpose(1, 2).contiguous() for part in (q, k, v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)
    return out if empty is None else out.masked_fill(empty.transpose(1, 2), 0.0)
