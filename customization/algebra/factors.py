"""The change of one layer as factors, exactly: D = s U V with U (out, r) and V (r, in * k ...), whatever kind it is stored as.

    LoRA                U = B, V = A
    LoCon with a core   U = B, V = M A
    LoHa                U = A1 . A2, V = B1 . B2     products of all pairs of columns, and of rows: rank r1 r2
    LoKr                U = U1 (x) U2, V = V1 (x) V2  as (U1 V1) (x) (U2 V2) is: rank r1 r2

A DoRA has no such form: what it adds depends on the weight that it is added to. A full difference is its own only factor.
All of this is computed in float64, where the products of half-precision factors are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gen.adapters import AdapterError, Delta
from gen.adapters.delta import EXTRAS, widest

WIDE = torch.float64
DORA = (
    "is a DoRA, whose change depends on the model's weights; put it into a model (Generator.fuse_adapters) and extract a LoRA "
    "from that"
)


def refuse_dora(layer: str, delta: Delta) -> None:
    if "magnitude" in delta.factors:
        raise AdapterError(f"{layer} {DORA}.")


def is_dense(delta: Delta) -> bool:
    """Is it a full difference, which has no factors?"""
    return delta.kind == "full"


def shape_of(delta: Delta) -> tuple[int, ...]:
    """(out, in, k, ...) of the weight, or (out,) of a bias alone."""
    return delta.dims


def flat(shape: Sequence[int]) -> tuple[int, int]:
    """(out, in * k ...); (out, 1) of a norm's weight."""
    return shape[0], math.prod(shape[1:])


def _with_core(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out, r), (r, in) as they are; (r, out), (r, in) with a core (r, r, k, ...) as (out, r), (r, in * k ...)."""
    return (a, b.flatten(1)) if core is None else (a.T, torch.einsum("ij...,jq->iq...", core, b).flatten(1))


def factors_of(delta: Delta) -> tuple[Tensor, Tensor]:
    """(U (out, r), V (r, in * k ...)) in float64 with D = s U V. AdapterError for a DoRA; ValueError for a full one."""
    refuse_dora("The layer", delta)
    f = {name: factor.to(WIDE) for name, factor in delta.factors.items() if name not in EXTRAS}
    kind = delta.kind
    if kind == "lora":
        if "mid" not in f:
            return f["up"].flatten(1), f["down"].flatten(1)
        return _with_core(f["up"].flatten(1).T, f["down"].flatten(1), f["mid"])
    if kind == "loha":
        (a1, b1), (a2, b2) = (_with_core(f[f"hada_w{i}_a"], f[f"hada_w{i}_b"], f.get(f"hada_t{i}")) for i in (1, 2))
        return (a1[:, :, None] * a2[:, None, :]).flatten(1), (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    if kind == "lokr":
        u1, v1 = _whole(f["lokr_w1"]) if "lokr_w1" in f else (f["lokr_w1_a"], f["lokr_w1_b"])
        if "lokr_w2" in f:
            u2, v2 = _whole(f["lokr_w2"].flatten(1))
        else:
            u2, v2 = _with_core(f["lokr_w2_a"], f["lokr_w2_b"], f.get("lokr_t2"))
        return torch.kron(u1.contiguous(), u2.contiguous()), torch.kron(v1.contiguous(), v2.contiguous())
    raise ValueError(f"a change of kind {kind!r} has no factors")


def _whole(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as a product with the identity, on its smaller side."""
    rows, columns = matrix.shape
    eye = torch.eye(min(rows, columns), dtype=matrix.dtype)
    return (eye, matrix) if rows <= columns else (matrix, eye)


def dense_of(delta: Delta, layer: str = "The layer") -> Tensor:
    """D (out, in * k ...) in float64, the scale in it."""
    refuse_dora(layer, delta)
    return delta.delta(torch.empty(delta.dims, dtype=WIDE)).reshape(flat(delta.dims))


def dtype_of(deltas: Sequence[Delta]) -> torch.dtype:
    """The widest dtype that any of the factors has."""
    return widest(factor.dtype for delta in deltas for name, factor in delta.factors.items() if name != "alpha")


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In this dtype; AdapterError where its range is too small."""
    made = tensor.to(dtype).contiguous()
    if not bool(made.isfinite().all()):
        raise AdapterError(
            f"The result has values up to {float(tensor.abs().max()):.3g}, beyond {str(dtype).removeprefix('torch.')}; make it "
            "of adapters in float32 or bfloat16."
        )
    return made


def lora(up: Tensor, down: Tensor, shape: Sequence[int], scale: float, dtype: torch.dtype, bias: Tensor | None = None) -> Delta:
    """The LoRA of factors (out, r) and (r, in * k ...), shaped for a weight (out, in, k, ...)."""
    rank, kernel = len(down), shape[2:]
    factors = {
        "down": rounded(down.reshape(rank, *shape[1:]), dtype),
        "up": rounded(up.reshape(shape[0], rank, *[1] * len(kernel)), dtype),
    }
    if bias is not None:
        factors["bias"] = rounded(bias, dtype)
    return Delta(factors, scale)


def full(change: Tensor, shape: Sequence[int], dtype: torch.dtype, bias: Tensor | None = None) -> Delta:
    """The full difference of a weight (out, in, k, ...)."""
    factors = {"weight": rounded(change.reshape(tuple(shape)), dtype)}
    if bias is not None:
        factors["bias"] = rounded(bias, dtype)
    return Delta(factors)


def scaled(delta: Delta, weight: float, layer: str = "The layer") -> Delta:
    """The same kind of change, times a weight. AdapterError for a DoRA at a weight other than 1."""
    if weight == 1:
        return delta
    refuse_dora(layer, delta)
    factors = {name: factor for name, factor in delta.factors.items() if name != "alpha"}
    for name in ("weight", "bias"):
        if name in factors:
            factors[name] = rounded(factors[name].to(WIDE) * weight, factors[name].dtype)
    if delta.kind in ("full", "bias"):
        return replace(delta, factors=factors)
    return replace(delta, factors=factors, scale=delta.scale * weight)
