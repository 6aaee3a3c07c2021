"""Multimarginal interpolants (arXiv 2310.03695) on Gaussians, of which everything is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context
from samplers.path import RectifiedFlow
from samplers.simplex import SimplexPath, path_cost, shorten, transport, velocity

G = torch.Generator().manual_seed(0)
MEANS = torch.randn(3, 4, generator=G).double()
STDS = (0.4 + torch.rand(3, 4, generator=G)).double()


def parts(weights: Tensor, x: Tensor, means: Tensor = MEANS, stds: Tensor = STDS) -> Tensor:
    """E[x_k | x(a) = x] of independent Gaussians: m_k + a_k s_k^2 / sum_j a_j^2 s_j^2 (x - sum_j a_j m_j)."""
    weights = weights[:, :, None]
    variance = (weights * stds).square().sum(1, keepdim=True)
    return means + weights * stds.square() / variance * (x[:, None] - (weights * means).sum(1, keepdim=True))


def bent(start: int, end: int) -> SimplexPath:
    return SimplexPath(start, end, 3, torch.tensor([[0.3, 0.0], [0.2, 0.5], [0.6, 0.1]]).double())


def test_paths_begin_and_end_at_corners_and_their_rates_are_derivatives():
    for path in (SimplexPath(0, 2, 3), bent(2, 1)):
        t = torch.linspace(0, 1, 9).double()
        weights, rates = path(t)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(1), torch.ones(9).double())
        corners = torch.eye(3).double()
        torch.testing.assert_close(weights[[0, -1]], corners[[path.start, path.end]])
        difference = (path(t[1:-1] + 1e-6)[0] - path(t[1:-1] - 1e-6)[0]) / 2e-6
        torch.testing.assert_close(rates[1:-1], difference, atol=1e-7, rtol=1e-6)
    for wrong in ((0, 0, 3), (0, 3, 3)):
        with pytest.raises(ValueError, match="give two that differ"):
            SimplexPath(*wrong)


@pytest.mark.parametrize("ends", [(0, 1), (1, 2), (2, 0)])
@pytest.mark.parametrize("straight", [True, False])
def test_every_path_takes_one_gaussian_to_the_other(ends, straight):
    """m_b + s_b / s_a (x - m_a), the monotone map, whatever the way; the midpoint rule nears it by the square of the step."""
    start, end = ends
    path = SimplexPath(start, end, 3) if straight else bent(start, end)
    x = MEANS[start] + STDS[start] * torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double()
    exact = MEANS[end] + STDS[end] / STDS[start] * (x - MEANS[start])
    coarse, fine = ((transport(parts, x, path, steps) - exact).abs().max().item() for steps in (50, 100))
    assert fine < 5e-3 and fine < 0.4 * coarse


def test_two_distributions_are_the_ordinary_interpolant():
    """Noise and data: the flow of a rectified flow, backwards in its clock."""
    means, stds = torch.stack([torch.zeros(4).double(), MEANS[1]]), torch.stack([torch.ones(4).double(), STDS[1]])
    oracle, x = Gaussian(RectifiedFlow(), MEANS[1], STDS[1]), torch.randn(5, 4, generator=G).double()
    for t in (0.2, 0.7):
        weights, rates = SimplexPath(0, 1, 2)(torch.tensor([t]).double())
        found = velocity(lambda w, x: parts(w, x, means, stds), x, weights[0], rates[0])
        level = oracle.path(1 - t)
        torch.testing.assert_close(found, -oracle(x, level, Condition(), Context()).flow(oracle.path))


def exact_cost(path: SimplexPath, means: Tensor, stds: Tensor) -> float:
    """The mean of |dx/dt|^2 by quadrature: |sum a' m|^2 + ((d/dt) |a s|)^2 in every dimension."""
    t = (torch.arange(4000).double() + 0.5) / 4000
    weights, rates = path(t)
    drift = (rates @ means).square().sum(1)
    spread = ((weights * rates) @ stds.square()).square() / (weights.square() @ stds.square())
    return (drift + spread.sum(1)).mean().item()


def test_the_cost_of_a_path_is_its_quadrature_and_shortening_lowers_it():
    """Of two equal distributions a straight edge makes everything shrink and grow again; a third with much spread helps."""
    means = torch.zeros(3, 2).double()
    stds = torch.tensor([[1.0], [1.0], [3.0]]).double().expand(3, 2).contiguous()
    known, edge = (lambda w, x: parts(w, x, means, stds)), SimplexPath(0, 1, 3)
    count = 20_000
    corners = means + stds * torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(2)).double()
    t = torch.linspace(0, 1, count + 2)[1:-1].double()
    for path in (edge, bent(0, 1)):
        assert path_cost(known, corners, path, t).item() == pytest.approx(exact_cost(path, means, stds), rel=0.04)
    shorter = shorten(known, corners[:512], edge, 60)
    assert exact_cost(shorter, means, stds) < 0.95 * exact_cost(edge, means, stds)
    assert (shorter.start, shorter.end) == (0, 1)
