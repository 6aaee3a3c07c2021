"""GITS: the best subset of a fine grid by dynamic programming over the errors of its Euler steps (arXiv 2405.11326)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.grids import Grid
from samplers.path import NoiseLevel, wide_dtype
from samplers.sample import Solver
from samplers.solvers import Multistep, evaluate


def euler_costs(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    solver: Solver | None = None,
    context: Context | None = None,
) -> Tensor:
    """(M + 1, M + 1) float64: the error of one Euler step from level i to level j of a teacher's run, infinite for j <= i.

    x (B, C, H, W) at levels[0]; the teacher runs `solver` (Euler by default) through all M steps. The error is the distance
    |y_i + (r_j - r_i) eps_i - y_j| in y = x / alpha and r = sigma / alpha, averaged over the batch (section 3.3).
    """
    solver, condition = solver or Multistep(1), condition or Condition()
    context = replace(context or Context(), steps=len(levels) - 1, levels=tuple(levels))
    state = replace(solver.init(x), level=levels[0])
    points, predictions = [x], []
    for step, (s, t) in enumerate(pairwise(levels)):
        prediction = evaluate(denoiser, state, s, condition, context.at(step))
        predictions.append(prediction)
        state = solver.step(denoiser, replace(state, prediction=prediction), s, t, condition, context.at(step))
        state = replace(state, level=t, step=step + 1)
        points.append(state.x)
    costs = torch.full((len(levels), len(levels)), math.inf, dtype=torch.float64)
    for i, prediction in enumerate(predictions):
        for j in range(i + 1, len(levels)):
            off = (levels[j].mix(prediction.x0, prediction.eps) - points[j]) / levels[j].alpha
            costs[i, j] = off.to(wide_dtype(off.device)).flatten(1).norm(dim=1).mean()
    return costs


def select(costs: Tensor, steps: int, coefficient: float = 1.15) -> list[int]:
    """The indices 0 = i_0 < ... < i_steps = M that minimise sum_k coefficient^k costs[i_k, i_k+1] (Algorithm 1).

    A coefficient above 1 weighs late errors more, below 1 early ones.
    """
    last = len(costs) - 1
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= last:
        raise ValueError(f"A teacher of {last} steps can be thinned to 1 to {last} steps, got {steps!r}.")
    if not 0 < coefficient < math.inf:
        raise ValueError(f"The coefficient must be a finite number above 0, got {coefficient}.")
    best, choices = costs[:, last].clone(), []
    for _ in range(steps - 1):
        # costs[j, i] + coefficient V[i]; a choice of the end itself would leave steps over
        total = costs + coefficient * best
        total[:, last] = math.inf
        best, choice = total.min(dim=1)
        choices.append(choice)
    chosen = [0]
    for choice in reversed(choices):
        chosen.append(int(choice[chosen[-1]]))
    return [*chosen, last]


def gits(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    steps: int,
    condition: Condition | None = None,
    *,
    coefficient: float = 1.15,
    solver: Solver | None = None,
    context: Context | None = None,
) -> Grid:
    """The `steps`-step subset of a fine grid for this denoiser: `euler_costs` on a batch of noise, then `select`."""
    costs = euler_costs(denoiser, x, levels, condition, solver=solver, context=context)
    return tuple(levels[i] for i in select(costs, steps, coefficient))
