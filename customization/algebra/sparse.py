"""Merges that keep some of each adapter's entries: TIES and DARE, on the whole change D of a layer, not on its factors.

    TIES (arXiv 2306.01708)   trim each D_i to its `density` largest entries; elect the sign of each entry, that of sum w_i D_i;
                              average the w_i D_i that have it
    DARE (arXiv 2311.03099)   drop entries at random, each kept with probability `density`, and divide the rest by it;
                              the sum of these ("dare"), or TIES of them without the trim ("dare_ties")

Trimming is per layer, as in peft, so that one layer is in memory at a time. The average of TIES is over the adapters that
agree, as published: two that say the same at weight 1 give that once, not twice. DARE's draws are a function of (seed, layer,
index of the adapter). What comes out has no factors: it is a full difference, or the best LoRA of a rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from customization.algebra.align import Aligned, align
from customization.algebra.factors import dense_of, dtype_of, full
from customization.algebra.sum import LayerReport, Merged, Track, approximated, assembled, bias_sum, check_rank, checked_weights
from customization.algebra.svd import Keep
from gen.adapters import Adapter, AdapterError, Delta

METHODS = ("ties", "dare", "dare_ties")


@dataclass(frozen=True)
class Sparse:
    """method: ties, dare or dare_ties. density: the share of entries that is kept, above 0 and up to 1. seed: of DARE."""

    method: str
    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise AdapterError(f"Unknown merge {self.method!r}; choose one of {', '.join(METHODS)}.")
        if isinstance(self.density, bool) or not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise AdapterError(f"The density is {self.density!r}; give the share of entries to keep, above 0 and up to 1.")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise AdapterError(f"The seed is {self.seed!r}; give a whole number of at least 0.")


def trim(change: Tensor, density: float) -> Tensor:
    """The `density` share of entries that are largest in size, at least one; the others 0."""
    k = max(1, int(density * change.numel()))
    flat = change.flatten()
    kept = torch.zeros_like(flat)
    index = flat.abs().topk(k, sorted=False).indices
    kept[index] = flat[index]
    return kept.reshape(change.shape)


def drop(change: Tensor, density: float, seed: int, key: str) -> Tensor:
    """Each entry 0 or, with probability `density`, itself / density; the mean is the change itself. key: with the seed, what
    the draw is a function of."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return change * (torch.rand(change.shape, generator=random, dtype=torch.float64) < density) / density


def elect(changes: Sequence[Tensor]) -> Tensor:
    """The mean, entry by entry, of those changes that are not 0 and have the sign of the sum of all; 0 where that is 0."""
    sign = sum(changes[1:], changes[0]).sign()
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for change in changes:
        agrees = (change.sign() == sign) & (sign != 0)
        total += change * agrees
        count += agrees
    return total / count.clamp_min(1)


def sparse_merge(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    how: Sparse,
    *,
    keep: Keep | None = None,
    name: str = "merged",
    disjoint: bool = False,
    dtype: torch.dtype | None = None,
    track: Track = iter,
) -> Merged:
    """A merge by TIES or DARE. weights: 1 each if None. keep: the result as LoRAs of this rank; None: full differences."""
    weights = checked_weights(adapters, weights)
    entries = align(adapters, disjoint)
    if keep is not None and keep.rank is not None:
        check_rank(keep.rank, [entry.shape for entry in entries])
    layers, reports = {}, []
    for entry in track(entries):
        made = _layer(entry, weights, how, keep, dtype)
        if made is not None:
            layers[entry.layer], report = made
            reports.append(report)
    if not layers:
        raise AdapterError("Every adapter has weight 0; there is nothing left to write.")
    made_by = {**vars(how), "weights": weights} | ({"keep": keep.values()} if keep else {})
    return assembled(adapters, layers, name, made_by, weights), reports


def combined(changes: Sequence[tuple[int, float, Tensor]], how: Sparse, layer: str) -> Tensor:
    """One merged change of (index of the adapter, weight, change) triples."""
    if how.method == "ties":
        return elect([w * trim(change, how.density) for _, w, change in changes])
    kept = [w * drop(change, how.density, how.seed, f"{layer}\0{i}") for i, w, change in changes]
    return elect(kept) if how.method == "dare_ties" else sum(kept[1:], kept[0])


def _layer(
    entry: Aligned, weights: Sequence[float], how: Sparse, keep: Keep | None, dtype: torch.dtype | None
) -> tuple[Delta, LayerReport] | None:
    pieces = [(i, w, d) for i, (w, d) in enumerate(zip(weights, entry.deltas, strict=True)) if d is not None and w != 0]
    if not pieces:
        return None
    dtype, ranks = dtype or dtype_of([d for _, _, d in pieces]), tuple(d.rank for _, _, d in pieces)
    changes = [(i, w, dense_of(d, entry.layer)) for i, w, d in pieces if d.kind != "bias"]
    bias = bias_sum([(w, d) for _, w, d in pieces])
    if not changes:
        assert bias is not None
        return Delta({"bias": bias.to(dtype)}), LayerReport(entry.layer, None, ranks, float(bias.norm()))
    total = combined(changes, how, entry.layer)
    if keep is None or len(entry.shape) < 2:
        return full(total, entry.shape, dtype, bias), LayerReport(entry.layer, None, ranks, float(total.norm()))
    return approximated(entry.layer, total, entry.shape, keep, dtype, bias, ranks)
