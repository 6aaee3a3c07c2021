"""The grid that brings a solver with few steps closest to the end of a fine run, by least squares over its levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.grids import Grid
from samplers.grids.common import ratio_bounds
from samplers.path import NoiseLevel
from samplers.sample import Solver, sample


@dataclass(frozen=True)
class Optimised:
    """The grid found, its distance to the fine run (root mean square), that of the grid it began with, and what it cost."""

    levels: Grid
    loss: float
    start_loss: float
    evaluations: float  # per image, the fine run included


def optimise_grid(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    fine: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    iterations: int = 20,
    context: Context | None = None,
) -> Optimised:
    """Move the interior levels of a grid so that the run from x (B, C, H, W) ends where the run along `fine` does.

    Both grids start at the same level, which stays, as does the last. The levels between lie inside `bounds` (log-SNR; by
    default from the start, or a little beyond the path's most noise, to a little beyond its least) as
    low + (high - low) cumsum(softmax(theta, 0)), which rises strictly whatever theta is. Levenberg-Marquardt on theta, with
    the Jacobian by finite differences: one run per interior level and iteration, and only steps that lower the loss are
    taken. For solvers without noise. Use enough images that the levels do not fit them alone: 64 and more.
    """
    levels, n = list(levels), len(levels) - 2
    if n < 1:
        raise ValueError(f"A grid of {len(levels) - 1} step(s) has no level to move: give at least 2 steps.")
    if fine[0].logsnr != levels[0].logsnr and not abs(fine[0].logsnr - levels[0].logsnr) < 1e-6:
        raise ValueError(f"The fine run starts at log-SNR {fine[0].logsnr:.6g}, not at the grid's {levels[0].logsnr:.6g}.")
    path, context = denoiser.path, context or Context()
    if bounds is None:
        least, most = ratio_bounds(path)
        first = levels[0].logsnr
        bounds = (first if math.isfinite(first) else -math.log(most) - 1, -math.log(least) + 1)
    low, high = bounds
    inside = [v.logsnr for v in levels[1:-1]]
    if not low < inside[0] <= inside[-1] < high:
        raise ValueError(f"The interior log-SNR, {inside[0]:.4g} to {inside[-1]:.4g}, must lie within the bounds {bounds}.")
    before = context.evaluations

    def grid(theta: Tensor) -> Grid:
        share = torch.cat([theta, theta.new_zeros(1)]).softmax(0).cumsum(0)[:-1]
        return (levels[0], *(path.at_logsnr(low + (high - low) * u) for u in share.tolist()), levels[-1])

    def end(along: Sequence[NoiseLevel]) -> Tensor:
        return sample(denoiser, solver, x, along, condition, context=context).flatten().cpu().double()

    with torch.no_grad():
        goal = end(fine)
        gaps = torch.tensor([b - a for a, b in zip([low, *inside], [*inside, high], strict=True)], dtype=torch.float64)
        theta = (gaps / gaps[-1]).log()[:-1]
        off = end(levels) - goal
        start_loss = loss = off.square().mean().sqrt().item()
        best, damping, width = tuple(levels), 1e-2, 1e-4 if x.dtype == torch.float64 else 1e-2
        for _ in range(iterations):
            columns = [(end(grid(theta + width * row)) - goal - off) / width for row in torch.eye(n, dtype=torch.float64)]
            jacobian = torch.stack(columns, 1)
            normal, slope = jacobian.T @ jacobian, jacobian.T @ off
            for _ in range(6):
                damped = normal + damping * torch.diag(normal.diagonal() + 1e-12 * normal.diagonal().max() + 1e-300)
                tried = theta - torch.linalg.solve(damped, slope)
                # a step that leaves no room between two levels cannot be run
                moved = grid(tried) if tried.abs().max() < 12 else None
                new = end(moved) - goal if moved is not None else None
                new_loss = math.inf if new is None else new.square().mean().sqrt().item()
                if new_loss < loss:
                    break
                damping *= 4
            if moved is None or new is None or not new_loss < loss:
                break
            gain, theta, off, best, loss = loss - new_loss, tried, new, moved, new_loss
            damping /= 3
            if gain < 1e-6 * loss:
                break
    return Optimised(best, loss, start_loss, (context.evaluations - before) / len(x))
