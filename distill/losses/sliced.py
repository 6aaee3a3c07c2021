"""Maximum mean discrepancy by the Riesz kernel -|x - y|, cut into slices: the gradient at N points by sorting on random lines.

    F(x) = 1 / (N M) sum_ij |x_i - y_j| - 1 / (2 N^2) sum_ij |x_i - x_j|

is half the squared discrepancy up to a constant in the data. On a line its derivative counts points on either side, so sorting
finds it in N log N; in d dimensions it is c_d times the mean over directions of that of the projections.

Source: arXiv 2305.11463, section 3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sliced_gradient(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """N times the gradient of F at points x (N, d) against data y (M, d): where each point is pushed from, (N, d).

    directions: (P, d), of any length but 0.
    """
    unit = directions / directions.norm(dim=1, keepdim=True)
    slopes = line_gradient(unit @ x.T, unit @ y.T)
    # arXiv 2305.11463, section 3: |x| is c_d E |<xi, x>| over unit directions xi
    return slice_constant(x.shape[1]) / len(unit) * slopes.T @ unit


def line_gradient(x: Tensor, y: Tensor) -> Tensor:
    """N times the derivative of F at points x (P, N) against y (P, M) on P lines."""
    # arXiv 2305.11463, section 3.1; equal points take no side
    return _sides(y, x) / y.shape[1] - _sides(x, x) / x.shape[1]


def _sides(points: Tensor, at: Tensor) -> Tensor:
    """sum_j sign(at - points_j), (P, N)."""
    ordered, at = points.sort(1).values, at.contiguous()
    below = torch.searchsorted(ordered, at) + torch.searchsorted(ordered, at, right=True)
    return (below - points.shape[1]).to(at)


def slice_constant(d: int) -> float:
    """c_d = sqrt(pi) Gamma((d + 1) / 2) / Gamma(d / 2)."""
    return math.exp(0.5 * math.log(math.pi) + math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
