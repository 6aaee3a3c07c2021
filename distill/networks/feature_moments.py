"""Two populations of feature vectors as Gaussians: how far apart they are, and where each drawn vector would have to go.

The Fréchet distance of the drawn population to the data's is a function of the drawn mean and covariance, and its gradient at
one of N drawn vectors f is 2 / N (f - T(f)), where T is the optimal transport map between the Gaussians,

    T(f) = m_r + A (f - m),   A = S^-1/2 (S^1/2 S_r S^1/2)^1/2 S^-1/2,

so a large population, remembered, can move a small batch. Fréchet distance as a loss: arXiv 2604.28190.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill.parallel.reduce import summed


def root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def transport(cov: Tensor, onto: Tensor) -> Tensor:
    """The symmetric A (D, D) with A cov A = onto: the linear part of the optimal transport map between Gaussians."""
    values, vectors = torch.linalg.eigh(cov)
    scale = values.clamp_min(torch.finfo(values.dtype).tiny).sqrt()
    half, inverse = (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T
    return inverse @ root(half @ onto @ half) @ inverse


class Population(nn.Module):
    """What a student has drawn lately, against data (N, D).

    memory: how many of the last drawn vectors count; earlier ones fade. shrinkage: this share of the data's mean variance is
    added to every direction of both covariances, so that what a few samples do not show is not stretched. unit: bring every
    number to the data's deviation first.

    `drawn` receives vectors at any time, `learn` puts them to use, on all processes alike. State is in float64.
    """

    spread: Tensor
    center: Tensor
    cov: Tensor
    seen: Tensor
    mean: Tensor
    second: Tensor
    start: Tensor
    matrix: Tensor
    apart: Tensor

    def __init__(self, data: Tensor, memory: int = 2048, shrinkage: float = 0.01, unit: bool = False):
        super().__init__()
        data, width = data.double(), data.shape[1]
        spread = data.std(0).clamp_min(1e-6) if unit else torch.ones(width, dtype=torch.float64)
        data = data / spread
        cov = torch.cov(data.T, correction=0).reshape(width, width)
        self.memory, self.total = memory, float(cov.trace()) or 1.0
        self.pending = [torch.zeros(shape, dtype=torch.float64) for shape in ((), (width,), (width, width))]
        self.floor = shrinkage * self.total / width * torch.eye(width, dtype=torch.float64)
        self.register_buffer("spread", spread, persistent=False)
        self.register_buffer("center", data.mean(0), persistent=False)
        self.register_buffer("cov", cov + self.floor, persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))  # of drawn vectors about the data's centre
        self.register_buffer("second", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("start", torch.zeros(width, dtype=torch.float64))  # of the map: the drawn mean
        self.register_buffer("matrix", torch.eye(width, dtype=torch.float64))
        self.register_buffer("apart", torch.tensor(-1.0, dtype=torch.float64))  # Fréchet distance; -1: no map yet

    @torch.no_grad()
    def drawn(self, features: Tensor) -> None:
        """Remember vectors (B, D) until `learn`. Those that are not finite are left out."""
        rows = (features.detach().double() / self.spread - self.center).cpu()
        rows = rows[rows.isfinite().all(1)]
        count = torch.tensor(len(rows), dtype=torch.float64)
        for total, part in zip(self.pending, (count, rows.sum(0), rows.T @ rows), strict=True):
            total += part

    @torch.no_grad()
    def learn(self) -> None:
        """Take in what was drawn, on every process, since the last time."""
        count, total, product = (summed(pending.to(self.seen.device, copy=True)) for pending in self.pending)
        for pending in self.pending:
            pending.zero_()
        if count > 0:
            self.seen += count
            share = count / self.seen.minimum(count.clamp(min=self.memory))
            self.mean.lerp_(total / count, share)
            self.second.lerp_(product / count, share)

    @torch.no_grad()
    def refresh(self) -> None:
        """Find the map anew, if enough was drawn."""
        if self.seen < self.memory:
            return
        cov = self.second - torch.outer(self.mean, self.mean) + self.floor.to(self.mean)
        self.start.copy_(self.mean)
        self.matrix.copy_(transport(cov, self.cov))
        # |m - m_r|^2 + tr(S + S_r - 2 (S^1/2 S_r S^1/2)^1/2): arXiv 1706.08500, equation 6
        trace = (cov + self.cov - 2 * cov @ self.matrix).diagonal().sum()
        self.apart.copy_((self.mean.square().sum() + trace).clamp_min(0))

    @property
    def known(self) -> bool:
        """Is there a map?"""
        return bool(self.apart >= 0)

    def error(self, features: Tensor) -> Tensor:
        """(B,): the squared distance of each vector (B, D) from where the map takes it, over the data's total variance; 0
        while there is no map, which is then the identity. Its mean is the Fréchet distance on that scale, and so is, up to
        1 / N, its gradient."""
        rows = features.double() / self.spread - self.center
        goal = (rows - self.start).detach() @ self.matrix
        return (rows - goal).square().sum(1) / self.total
