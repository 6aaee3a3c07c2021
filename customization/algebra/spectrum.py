"""What is in an adapter, layer by layer: norms, singular values, how much rank it really uses; and how alike two are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from customization.algebra.align import align
from customization.algebra.factors import dense_of, factors_of, flat, is_dense
from customization.algebra.sum import Track
from customization.algebra.svd import Keep, core_svd
from gen.adapters import Adapter, Delta

SHARES = (0.9, 0.99)


@dataclass(frozen=True)
class Spectrum:
    """s: the singular values of the change D, from large to small, those below 1e-7 of the first left out; empty for a bias.

    rank: as stored. norm: |D|, Frobenius. spectral: s_1. stable_rank: |D|^2 / s_1^2, from 1 up to the rank. needed: the ranks
    at which |D_k| reaches 0.9 and 0.99 of |D|.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    rank: int | None
    s: tuple[float, ...]

    @property
    def norm(self) -> float:
        return sum(value**2 for value in self.s) ** 0.5

    @property
    def spectral(self) -> float:
        return self.s[0] if self.s else 0.0

    @property
    def stable_rank(self) -> float:
        return self.norm**2 / self.spectral**2 if self.spectral else 0.0

    @property
    def needed(self) -> tuple[int, ...]:
        s = torch.tensor(self.s or (0.0,), dtype=torch.float64)
        return tuple(Keep(sv_fro=share).count(s) for share in SHARES)

    def values(self) -> dict[str, Any]:
        """All of it as plain values."""
        own = {"layer": self.layer, "kind": self.kind, "shape": list(self.shape), "rank": self.rank, "norm": self.norm}
        needed = {f"rank_{share:g}": k for share, k in zip(SHARES, self.needed, strict=True)}
        own |= {"spectral_norm": self.spectral, "stable_rank": self.stable_rank}
        return own | needed | {"singular_values": list(self.s)}


def singular_values(delta: Delta) -> Tensor:
    """Of the change D (of the one that a DoRA's factors make, before its magnitude); empty for a bias alone."""
    if delta.kind == "bias":
        return torch.empty(0, dtype=torch.float64)
    delta = without_magnitude(delta)
    if not is_dense(delta):
        up, down = factors_of(delta)
        if len(down) <= min(flat(delta.dims)):
            return abs(delta.scale) * core_svd(up, down)[1]
    return torch.linalg.svdvals(dense_of(delta))


def without_magnitude(delta: Delta) -> Delta:
    return replace(delta, factors={name: factor for name, factor in delta.factors.items() if name != "magnitude"})


def spectra(adapter: Adapter, track: Track = iter) -> list[Spectrum]:
    """The spectrum of every layer, in the file's order."""
    layer_spectra = []
    for layer, delta in track(list(adapter.layers.items())):
        s = singular_values(delta)
        s = s[s > 1e-7 * s[0]] if len(s) else s
        layer_spectra.append(Spectrum(layer, delta.type, delta.dims, delta.rank, tuple(map(float, s))))
    return layer_spectra


def similarity(adapters: Sequence[Adapter], track: Track = iter) -> list[list[float]]:
    """cos(D_i, D_j) = <D_i, D_j> / |D_i| |D_j| over all layers together, as a table: near 0 two adapters can be added without
    getting into each other's way, near 1 they do the same twice. DoRAs count without their magnitude."""
    n = len(adapters)
    gram = torch.zeros(n, n, dtype=torch.float64)
    for entry in track(align(adapters, disjoint=True)):
        halves = [(i, _halves(delta)) for i, delta in enumerate(entry.deltas) if delta is not None and delta.kind != "bias"]
        for i, (up, down) in halves:
            for j, (other_up, other_down) in halves:
                gram[i, j] += ((up.T @ other_up) * (down @ other_down.T)).sum()
    size = gram.diagonal().sqrt()
    return (gram / (size[:, None] * size).clamp_min(1e-300)).tolist()


def _halves(delta: Delta) -> tuple[Tensor, Tensor]:
    """(U, V) with D = U V, the scale in U; a whole change times the identity."""
    delta = without_magnitude(delta)
    if is_dense(delta):
        whole = dense_of(delta)
        return whole, torch.eye(whole.shape[1], dtype=whole.dtype)
    up, down = factors_of(delta)
    return delta.scale * up, down
