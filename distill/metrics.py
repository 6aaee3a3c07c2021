"""Numbers that compare pictures, or sets of feature vectors. Features are (N, D); all arithmetic is in float64."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(y: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB between pictures (..., H, W) in [-1, 1], over all of them; y is clamped first."""
    return -10 * ((y.clamp(-1, 1) - x).square().mean() / 4).clamp_min(1e-12).log10()


def _features(*sets: Tensor, least: int) -> list[Tensor]:
    for features in sets:
        if features.ndim != 2 or len(features) < least or features.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(tuple(f.shape)) for f in sets)
            raise ValueError(f"Features must be (N, D) with at least {least} rows and one D; given {shapes}.")
    return [features.detach().double() for features in sets]


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features a (N, D) and b (M, D).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with unbiased covariances A and B
    (Heusel et al. 2017, arXiv 1706.08500, equation 6; the product in its symmetric form, whose trace is the same).
    Biased upwards for few samples: compare values of equal N only.
    """
    a, b = _features(a, b, least=2)
    cov_a, cov_b, root = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1), None
    root = _root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: the unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3.

    Binkowski et al. 2018, arXiv 1801.01401, section 4 and equation 4 there (both diagonals left out). May be negative.
    """
    a, b = _features(a, b, least=2)
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    aa, bb, n, m = kernel(a, a), kernel(b, b), len(a), len(b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall): the share of generated features within the k-nearest-neighbour balls of real ones, and the
    reverse (Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1 and 2)."""
    real, generated = _features(real, generated, least=k + 1)

    def covered(points: Tensor, manifold: Tensor) -> float:
        radii = torch.cdist(manifold, manifold).kthvalue(k + 1, dim=1).values  # the nearest is the point itself
        return float((torch.cdist(points, manifold) <= radii).any(1).double().mean())

    return covered(generated, real), covered(real, generated)
