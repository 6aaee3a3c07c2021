"""Singular values: of a product of factors without forming it, of a matrix by a random sketch, and how many to keep.

    U V = (Q_u R_u)(Q_v R_v)^T,   R_u R_v^T = P S W^T  (r x r),   so  U V = (Q_u P) S (Q_v W)^T

is the singular value decomposition of U V for the price of two thin QR factorisations: exact, and the best approximation of
every lower rank is its leading part (Eckart and Young).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gen.adapters import AdapterError
from gen.adapters.delta import MAX_RANK

Svd = tuple[Tensor, Tensor, Tensor]  # P (out, k), S (k,) from large to small, W^T (k, in)
OVERSAMPLE, ITERATIONS = 16, 4
SMALL = 512  # up to here a matrix is decomposed whole: it takes less than a second


def core_svd(up: Tensor, down: Tensor) -> Svd:
    """The singular value decomposition of up @ down, (out, r) and (r, in)."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    p, s, wt = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ p, s, wt @ q_down.T


def sketch_svd(matrix: Tensor, rank: int, seed: int = 0, oversample: int = OVERSAMPLE, iterations: int = ITERATIONS) -> Svd:
    """The leading `rank` singular triples of a matrix, approximately: a randomised range finder with subspace iterations
    (arXiv 0909.4061, algorithms 4.4 and 5.1). The same for the same seed; no global random state is read or changed."""
    rows, columns = matrix.shape
    k = min(rank + oversample, rows, columns)
    random = torch.Generator().manual_seed(seed)
    omega = torch.randn(columns, k, generator=random, dtype=torch.float64).to(matrix)
    q = torch.linalg.qr(matrix @ omega).Q
    for _ in range(iterations):
        q = torch.linalg.qr(matrix.T @ q).Q
        q = torch.linalg.qr(matrix @ q).Q
    p, s, wt = torch.linalg.svd(q.T @ matrix, full_matrices=False)
    return (q @ p)[:, :rank], s[:rank], wt[:rank]


def matrix_svd(matrix: Tensor, rank: int | None = None, seed: int = 0) -> Svd:
    """Of a whole matrix: all singular triples, or the leading `rank`, by a sketch where that is much less work."""
    side = min(matrix.shape)
    if rank is None or side <= SMALL or 4 * (rank + OVERSAMPLE) > side:
        p, s, wt = torch.linalg.svd(matrix, full_matrices=False)
        return (p, s, wt) if rank is None else (p[:, :rank], s[:rank], wt[:rank])
    return sketch_svd(matrix, rank, seed)


@dataclass(frozen=True)
class Keep:
    """How many singular values s_1 >= s_2 >= ... to keep: the fewest that meet the rule, and never more than `rank`.

    sv_ratio: those of at least s_1 / sv_ratio. sv_fro: until the root of the sum of their squares is this share of all.
    sv_cumulative: until their sum is this share of all. At most one of the three; with none of them, `rank` of them.
    """

    rank: int | None = None
    sv_ratio: float | None = None
    sv_fro: float | None = None
    sv_cumulative: float | None = None

    def __post_init__(self) -> None:
        rules = [f.name for f in fields(self) if f.name != "rank" and getattr(self, f.name) is not None]
        if self.rank is None and not rules:
            raise AdapterError(
                "Nothing says how many singular values to keep; give a rank, or sv_ratio, "
                "sv_fro or sv_cumulative (--rank, --sv-ratio, --sv-fro, --sv-cumulative)."
            )
        if len(rules) > 1:
            raise AdapterError(f"{' and '.join(rules)} are given; give one of them, and a rank as the most to keep.")
        if self.rank is not None and not (type(self.rank) is int and 1 <= self.rank <= MAX_RANK):
            raise AdapterError(f"The rank is {self.rank!r}; give a whole number from 1 to {MAX_RANK}.")
        for rule in rules:
            value, most = getattr(self, rule), math.inf if rule == "sv_ratio" else 1.0
            low = 1.0 if rule == "sv_ratio" else 0.0
            if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= most or math.isinf(value):
                allowed = "a number above 1" if rule == "sv_ratio" else "a number above 0 and up to 1"
                raise AdapterError(f"{rule} is {value!r}; give {allowed}.")

    def values(self) -> dict[str, float]:
        """What is set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def needs_all(self) -> bool:
        """Does the rule ask for the sum of all singular values?"""
        return self.sv_cumulative is not None

    def count(self, s: Tensor, energy: float | None = None) -> int:
        """How many of these, at least 1. energy: the sum of the squares of all, where s holds only the leading ones."""
        s = s.double()
        k = len(s) if self.sv_fro or self.sv_cumulative else int((s > 1e-12 * s[0]).sum())
        if self.sv_ratio is not None:
            k = int((s >= s[0] / self.sv_ratio * (1 - 1e-9)).sum())
        elif self.sv_fro is not None:
            total = float(s.square().sum()) if energy is None else energy
            k = _reached(s.square().cumsum(0), self.sv_fro**2 * total)
        elif self.sv_cumulative is not None:
            k = _reached(s.cumsum(0), self.sv_cumulative * float(s.sum()))
        return max(1, min(k, len(s), self.rank or len(s)))


def _reached(sums: Tensor, target: float) -> int:
    """How many terms until a running sum is at the target, up to rounding."""
    return int((sums < target * (1 - 1e-9)).sum()) + 1
