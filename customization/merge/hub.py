"""LoRA Hub (arXiv 2307.13269): weights for several adapters, found by a search without gradients on a few examples.

    w* = argmin L(w) + l1 mean |w|,   w in [-1.5, 1.5]^N

The search is CMA-ES (arXiv 1604.00772), whose whole state is a mean, a step size and a covariance. w = 0, the model as it
is, is the first candidate, so what comes back is never worse than it.
`hub_merge` is W + sum w_i D_i. The published code adds the factors up apart, (sum w_i B_i) (sum w_i A_i), which has cross terms
between the adapters and goes with w^2 for a single one; that is `lorahub_factors`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from customization.algebra.align import align, names_of
from customization.algebra.factors import WIDE, dtype_of, lora
from customization.algebra.sum import Merged, assembled, checked_weights, weighted_sum
from gen.adapters import Adapter, AdapterError

Loss = Callable[[dict[str, float]], float]


@dataclass(frozen=True)
class HubSearch:
    """weights: the best that were seen, and their loss (without the l1 term). start: the loss at w = 0. history: what was
    evaluated, in order, as (weights, loss)."""

    weights: dict[str, float]
    loss: float
    start: float
    history: list[tuple[dict[str, float], float]] = field(repr=False)


def search_weights(
    loss: Loss, names: Sequence[str], *, evaluations: int = 60, bound: float = 1.5, l1: float = 0.05, seed: int = 0
) -> HubSearch:
    """Weights in [-bound, bound] for adapters of these names.

    loss: weights by name -> a number that is to be small, such as the loss of a few examples, or minus a reward, of pictures
    made with `Generator.set_adapters(weights)`; NaN and infinity count as the worst. evaluations: how often it is called.
    l1: the price of mean |w|. The same for the same seed.
    """
    if not names or len(set(names)) != len(names):
        raise AdapterError(f"The search needs names, each once, and got {list(names)}.")
    if evaluations < 1 or not 0 < bound <= 100 or not 0 <= l1 < math.inf:
        raise AdapterError(
            f"The search got evaluations={evaluations}, bound={bound} and l1={l1}; give at least one evaluation, a bound from "
            "0 to 100, and an l1 of at least 0."
        )
    history: list[tuple[dict[str, float], float]] = []
    priced: list[float] = []

    def evaluate(point: Tensor) -> float:
        weights = dict(zip(names, point.tolist(), strict=True))
        value = float(loss(dict(weights)))
        value = value if math.isfinite(value) else math.inf
        history.append((weights, value))
        priced.append(value + l1 * float(point.abs().mean()))
        return priced[-1]

    evaluate(torch.zeros(len(names), dtype=WIDE))
    evolve(evaluate, torch.zeros(len(names), dtype=WIDE), bound, evaluations - 1, seed)
    best = min(range(len(priced)), key=lambda i: priced[i])
    return HubSearch(*history[best], history[0][1], history)


def evolve(objective: Callable[[Tensor], float], mean: Tensor, bound: float, evaluations: int, seed: int) -> Tensor:
    """The mean that CMA-ES arrives at with so many calls of the objective, from a step size of bound / 3. Equation numbers are
    those of arXiv 1604.00772; points beyond the bound are moved onto it before they are evaluated and used."""
    n = len(mean)
    population = 4 + int(3 * math.log(n))  # (48)
    mu = population // 2
    raw = math.log((population + 1) / 2) - torch.arange(1, mu + 1, dtype=WIDE).log()  # (49)
    shares = raw / raw.sum()
    mu_eff = float(1 / shares.square().sum())
    c_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # (55)
    damping = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_sigma
    c_path = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # (56)
    c_one = 2 / ((n + 1.3) ** 2 + mu_eff)  # (57)
    c_mu = min(1 - c_one, 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))  # (58)
    usual = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))  # E |N(0, I)|
    sigma, covariance = bound / 3, torch.eye(n, dtype=WIDE)
    path_sigma, path = torch.zeros(n, dtype=WIDE), torch.zeros(n, dtype=WIDE)
    random = torch.Generator().manual_seed(seed)
    generation = 0
    while evaluations >= population:
        generation += 1
        values, basis = torch.linalg.eigh(covariance)
        root = values.clamp_min(1e-20).sqrt()
        z = torch.randn(population, n, generator=random, dtype=WIDE)
        points = (mean + sigma * (z * root) @ basis.T).clamp(-bound, bound)  # (38) - (40)
        scores = torch.tensor([objective(point) for point in points], dtype=WIDE)
        evaluations -= population
        steps = (points[scores.argsort(stable=True)[:mu]] - mean) / sigma
        step = shares @ steps  # (41)
        mean = mean + sigma * step  # (42)
        path_sigma = (1 - c_sigma) * path_sigma + math.sqrt(c_sigma * (2 - c_sigma) * mu_eff) * (
            basis @ ((basis.T @ step) / root)
        )  # (43)
        length = float(path_sigma.norm()) / usual
        stalled = length / math.sqrt(1 - (1 - c_sigma) ** (2 * generation)) > 1.4 + 2 / (n + 1)
        path = (1 - c_path) * path + (0.0 if stalled else math.sqrt(c_path * (2 - c_path) * mu_eff)) * step  # (45)
        lost = c_path * (2 - c_path) if stalled else 0.0
        covariance = (
            (1 - c_one - c_mu + c_one * lost) * covariance + c_one * torch.outer(path, path) + c_mu * (steps.T * shares) @ steps
        )  # (47), without negative weights
        covariance = (covariance + covariance.T) / 2
        sigma *= math.exp(min(1.0, c_sigma / damping * (length - 1)))  # (44)
    return mean


def hub_merge(adapters: Sequence[Adapter], weights: Mapping[str, float], **options: Any) -> Merged:
    """W + sum w_i D_i of the weights that a search found, by the adapters' names. options: those of `weighted_sum`."""
    return weighted_sum(adapters, _by_name(adapters, weights), **{"name": "hub", **options})


def lorahub_factors(adapters: Sequence[Adapter], weights: Mapping[str, float], name: str = "lorahub") -> Adapter:
    """s (sum w_i B_i) (sum w_i A_i), as the published code merges: not the sum of the changes (see above).

    AdapterError unless all are LoRAs of the same layers, ranks and scales.
    """
    given = checked_weights(adapters, _by_name(adapters, weights))
    layers = {}
    for entry in align(adapters):
        first = entry.present[0]
        alike = all(
            delta is not None and set(delta.factors) - {"alpha"} == {"up", "down"} and delta.rank == first.rank
            and delta.scale == first.scale for delta in entry.deltas
        )  # fmt: skip
        if not alike:
            raise AdapterError(
                f"{entry.layer} is not a LoRA of the same rank and scale in all of them, so its factors cannot be added up "
                "apart; hub_merge adds any."
            )
        up, down = (
            sum(w * d.factors[side].to(WIDE) for w, d in zip(given, entry.present, strict=True)) for side in ("up", "down")
        )
        layers[entry.layer] = lora(up.flatten(1), down.flatten(1), entry.shape, first.scale, dtype_of(entry.present))  # type: ignore[union-attr]
    return assembled(adapters, layers, name, {"method": "lorahub, factor by factor", "weights": given}, given)


def _by_name(adapters: Sequence[Adapter], weights: Mapping[str, float]) -> list[float]:
    names = names_of(adapters)
    if set(names) != set(weights):
        raise AdapterError(f"The weights are for {', '.join(weights)}, and the adapters are {', '.join(names)}.")
    return [weights[name] for name in names]
