"""Which noise goes to which picture: couplings within a batch (multisample flow matching, arXiv 2304.14772).

Every noise of the batch is used, or used in expectation, as often as every other, so both marginals stay what they were and
the model that is learned is as valid as with independent noise; its paths are straighter, so few steps cost less.

A coupling must not tell the network anything about the condition: noise matched across captions would be, given a caption,
no longer Gaussian, but sampling starts from a Gaussian. Samples are therefore matched with those of an equal condition only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distill.types import Batch, Draws
from gen.nn.registry import Config


class CouplingConfig(Config):
    """independent; exact: the permutation of least total squared distance (BatchOT); sinkhorn: a draw from the entropic plan
    (BatchEOT), `epsilon` times the mean cost being the temperature; stable: no picture and noise would rather have each other
    (BatchStable). within: "condition" matches samples of an equal label or caption only, "batch" all of them, which is right
    for unconditional models."""

    type: Literal["independent", "exact", "sinkhorn", "stable"] = "independent"
    epsilon: float = Field(default=0.05, gt=0)
    iterations: int = Field(default=100, gt=0)
    within: Literal["condition", "batch"] = "condition"


def couple(config: CouplingConfig, x0: Tensor, eps: Tensor, batch: Batch, draws: Draws) -> Tensor:
    """The noise (B, ...) for each sample of x0 (B, ...): rows of `eps`. Computed in float64 on the CPU.

    Which noise a sample gets depends on its batch: with couplings, runs of other micro-batches or more processes differ.
    """
    if config.type == "independent":
        return eps
    order = torch.arange(len(x0))
    data, noise = (v.detach().flatten(1).double().cpu() for v in (x0, eps))
    chance = draws.uniform("coupling").double()
    for rows in groups(batch if config.within == "condition" else Batch(index=batch.index)):
        if len(rows) > 1:
            cost = torch.cdist(data[rows], noise[rows]).square()
            if config.type == "sinkhorn":
                plan = sinkhorn(cost, config.epsilon * cost.mean().item(), config.iterations)
                chosen = draw_rows(plan, chance[rows])
            else:
                chosen = assign(cost) if config.type == "exact" else match_stably(cost)
            order[rows] = rows[chosen]
    return eps[order.to(eps.device)]


def groups(batch: Batch) -> list[Tensor]:
    """The rows of each distinct condition; all rows where there is none."""
    keys: Sequence[Hashable] = [()] * len(batch)
    if batch.captions is not None:
        keys = list(batch.captions)
    elif batch.labels is not None:
        keys = batch.labels.tolist()
    members: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        members.setdefault(key, []).append(row)
    return [torch.tensor(rows) for rows in members.values()]


def assign(cost: Tensor) -> Tensor:
    """The permutation p (N,) of least sum_i cost[i, p[i]], for cost (N, N): shortest augmenting paths, O(N^3).

    Source: Jonker and Volgenant, Computing 38 (1987); in the form of Crouse, IEEE TAES 52 (2016), without initialisation.
    """
    costs = cost.double().numpy()
    size = len(costs)
    u, v = np.zeros(size), np.zeros(size)  # dual prices of rows and columns
    row_of, column_of = np.full(size, -1), np.full(size, -1)
    for start in range(size):
        shortest, parent = np.full(size, np.inf), np.full(size, -1)
        done = np.zeros(size, bool)  # columns whose distance is final
        row, reached, sink = start, 0.0, -1
        while sink < 0:
            through = reached + costs[row] - u[row] - v
            better = ~done & (through < shortest)
            shortest[better], parent[better] = through[better], row
            column = int(np.where(done, np.inf, shortest).argmin())
            reached = shortest[column]
            done[column] = True
            if row_of[column] < 0:
                sink = column
            else:
                row = int(row_of[column])
        slack = reached - shortest[done]
        owners = row_of[done]
        u[start] += reached
        u[owners[owners >= 0]] += slack[owners >= 0]
        v[done] -= slack
        while sink >= 0:  # flip the path
            row = int(parent[sink])
            row_of[sink] = row
            sink, column_of[row] = int(column_of[row]), sink
            if row == start:
                break
    return torch.from_numpy(column_of)


def sinkhorn(cost: Tensor, temperature: float, iterations: int) -> Tensor:
    """The plan (N, N) of least <cost, plan> - temperature entropy with unit row sums, and column sums near 1."""
    logits = -cost / temperature
    f, g = torch.zeros(len(cost)).to(cost), torch.zeros(len(cost)).to(cost)
    for _ in range(iterations):
        g = -(logits + f[:, None]).logsumexp(0)
        f = -(logits + g).logsumexp(1)
    return (logits + f[:, None] + g).exp()


def draw_rows(plan: Tensor, chance: Tensor) -> Tensor:
    """One column (N,) per row of a plan with unit row sums, by inverting its cumulative sums at `chance` (N,)."""
    return torch.searchsorted(plan.cumsum(1), chance[:, None]).squeeze(1).clamp(max=plan.shape[1] - 1)


def match_stably(cost: Tensor) -> Tensor:
    """A permutation (N,) without a pair that would both gain by leaving their partners. As both sides rank by the same cost, it
    is found by taking the cheapest pair left, again and again."""
    size = len(cost)
    partner, taken = torch.full((size,), -1), torch.zeros(size, dtype=torch.bool)
    for place in cost.flatten().argsort(stable=True).tolist():
        row, column = divmod(place, size)
        if partner[row] < 0 and not taken[column]:
            partner[row], taken[column] = column, True
    return partner
