"""Transport among several distributions at once: multimarginal stochastic interpolants.

Of K distributions a point is x(a) = sum_k a_k x_k for weights a on the simplex; its corners are the distributions themselves.
With g_k(a, x) = E[x_k | x(a) = x] the flow dx/dt = sum_k a_k'(t) g_k(a(t), x) takes x along any path a(t), so that one network
goes from any of them to any other, and the path may be chosen.

x is (B, ...), weights (B, K) or (K,), g (B, K, ...).

Source: arXiv 2310.03695, theorem 1 and section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.path import wide_dtype

STARTS = (0.1, 0.5, 1.0)  # the largest numbers of the bends that `shorten` begins with
Parts = Callable[[Tensor, Tensor], Tensor]  # (weights (B, K), x) -> g (B, K, ...)


@dataclass(frozen=True)
class SimplexPath:
    """Weights a(t), t from 0 to 1, between two corners of K: a_k is (its share of the straight edge + sum_n bend_kn^2
    sin^2(n pi t)) over the sum of all; without `bend` (K, N) the edge itself."""

    start: int
    end: int
    count: int
    bend: Tensor | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.count and 0 <= self.end < self.count) or self.start == self.end:
            raise ValueError(
                f"A path goes from corner {self.start} to {self.end} of {self.count}; give two that differ, from 0 to "
                f"{self.count - 1}."
            )

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(weights, their derivatives) at times t (T,): (T, K) each."""
        edge, slope = t.new_zeros(len(t), self.count), t.new_zeros(len(t), self.count)
        edge[:, self.start], edge[:, self.end] = 1 - t, t
        slope[:, self.start], slope[:, self.end] = -1, 1
        if self.bend is None:
            return edge, slope
        angles = math.pi * t[:, None] * torch.arange(1, self.bend.shape[1] + 1, device=t.device, dtype=t.dtype)
        strength = self.bend.to(t).square().T  # (N, K)
        raw = edge + angles.sin().square() @ strength
        rise = slope + (math.pi * torch.arange(1, self.bend.shape[1] + 1).to(t) * (2 * angles).sin()) @ strength
        total = raw.sum(1, keepdim=True)
        weights = raw / total
        return weights, (rise - weights * rise.sum(1, keepdim=True)) / total


def velocity(parts: Parts, x: Tensor, weights: Tensor, rates: Tensor) -> Tensor:
    """sum_k a_k' g_k(a, x) (B, ...), for weights and their derivatives (K,) or (B, K)."""
    weights, rates = (value.to(x).expand(len(x), -1) for value in (weights, rates))
    return (rates.reshape(*rates.shape, *[1] * (x.ndim - 1)) * parts(weights, x)).sum(1)


def transport(parts: Parts, x: Tensor, path: SimplexPath, steps: int) -> Tensor:
    """x (B, ...) of the first corner's distribution, taken along a path to the last's by the midpoint rule."""
    if steps < 1:
        raise ValueError(f"A transport has {steps} steps; give at least 1.")
    times = torch.linspace(0, 1, 2 * steps + 1, dtype=wide_dtype(x.device), device=x.device)
    weights, rates = path(times)
    for i in range(steps):
        first, middle = 2 * i, 2 * i + 1
        half = x + velocity(parts, x, weights[first], rates[first]) / (2 * steps)
        x = x + velocity(parts, half, weights[middle], rates[middle]) / steps
    return x


def path_cost(parts: Parts, corners: Tensor, path: SimplexPath, t: Tensor) -> Tensor:
    """The mean of |dx/dt|^2 along a path: what section 3.2 makes small over paths. Differentiable in the path's bend.

    corners (B, K, ...): samples of every distribution. t (B,): times, uniform in 0 .. 1 for an unbiased estimate.
    """
    weights, rates = (value.to(corners) for value in path(t.to(wide_dtype(t.device))))
    x = (weights.reshape(*weights.shape, *[1] * (corners.ndim - 2)) * corners).sum(1)
    return velocity(parts, x, weights, rates).square().flatten(1).sum(1).mean()


def shorten(
    parts: Parts, corners: Tensor, path: SimplexPath, updates: int, terms: int = 3, lr: float = 0.05, seed: int = 0
) -> SimplexPath:
    """The path between the same corners that costs least of those that Adam finds for its bend, and of the given one.

    It starts from bends of several sizes, as small ones may cost more than none where large ones cost less. Times are the same
    even ones in every update. terms: N of the bend.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(corners), generator=generator).to(corners.device)
    t = (order + 0.5) / len(corners)

    def bent(bend: Tensor) -> SimplexPath:
        return SimplexPath(path.start, path.end, path.count, bend)

    found = [path]
    for size in STARTS:
        drawn = size * torch.rand(path.count, terms, generator=generator, dtype=torch.float64)
        bend = drawn.to(corners.device, wide_dtype(corners.device)).requires_grad_()
        optimizer = torch.optim.Adam([bend], lr)
        for _ in range(updates):
            optimizer.zero_grad()
            path_cost(parts, corners, bent(bend), t).backward()
            optimizer.step()
        found.append(bent(bend.detach()))
    with torch.no_grad():
        costs = [path_cost(parts, corners, one, t).item() for one in found]
    return found[costs.index(min(costs))]
