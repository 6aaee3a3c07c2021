"""Beam search for the strengths of training-free guidance (TFG, arXiv 2409.15761, section 4.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Strengths(NamedTuple):
    """The numbers of `TFG` that are searched for; recurrence and iterations are a matter of the time there is."""

    rho: float
    mu: float
    gamma: float


START = Strengths(0.25, 0.25, 0.001)
FACTORS = Strengths(2.0, 2.0, 10.0)
MOST = Strengths(8.0, 8.0, 1.0)


@dataclass(frozen=True)
class Beam:
    """A search between two sweeps: the candidates kept, best first, all that was measured, and whether it is over."""

    kept: tuple[Strengths, ...] = (START,)
    scores: Mapping[Strengths, float] = field(default_factory=dict)
    sweep: int = 0
    done: bool = False

    @property
    def best(self) -> tuple[Strengths, float]:
        """The highest score, the earlier one of equals."""
        return max(self.scores.items(), key=lambda item: item[1])


def search_strengths(
    beam: Beam,
    score: Callable[[Strengths], float],
    budget: float,
    *,
    cost: Callable[[Strengths], float] = lambda strengths: 1.0,
    width: int = 2,
    sweeps: int = 6,
    factors: Strengths = FACTORS,
    most: Strengths = MOST,
    neighbours: Callable[[Strengths], Iterable[Strengths]] | None = None,
) -> Iterator[Beam]:
    """Yield the beam after each sweep: every kept candidate with each of its numbers multiplied by its factor, in turn.

    score: higher is better, -inf rules a candidate out; a mean of the energy over some 64 samples, for example, less what they
    lose in quality. The `width` best of all that was measured are kept. The search ends after `sweeps`, when no kept candidate
    is new, or where the next trial would cost more than is left of `budget`; nothing is measured twice, and one trial costs
    `cost` (1 by default, so that the budget counts trials; samples times steps times evaluations, to count those). A beam that
    is handed back goes on as if it had not stopped, on the budget then given, what it has spent included.

    The published search: from (0.25, 0.25, 0.001) by (2, 2, 10) up to (8, 8, 1), 2 kept, 6 sweeps at most.
    """
    for name, value in (("width", width), ("sweeps", sweeps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    if not all(1 < factor < math.inf for factor in factors):
        raise ValueError(f"The factors must be finite and above 1, got {tuple(factors)}.")
    spent = math.fsum(cost(tried) for tried in beam.scores)
    if not beam.scores and cost(beam.kept[0]) > budget:
        raise ValueError(f"A budget of {budget} pays for no trial, which costs {cost(beam.kept[0])}; give more.")

    while not beam.done and beam.sweep < sweeps:
        scores, over = dict(beam.scores), False
        around = neighbours or (lambda kept: _neighbours(kept, factors, most))
        trials = beam.kept if not scores else [c for kept in beam.kept for c in around(kept)]
        for candidate in dict.fromkeys(trials):
            if candidate in scores:
                continue
            price = cost(candidate)
            if spent + price > budget:
                over = True
                break
            spent += price
            scores[candidate] = float(score(candidate))
            if math.isnan(scores[candidate]):
                raise ValueError(f"The score of {candidate} is not a number; return -infinity to rule a candidate out.")
        ranked = sorted(scores, key=lambda c: -scores[c])[:width]
        fresh = any(candidate not in beam.scores for candidate in ranked)
        first = not beam.scores
        beam = Beam(tuple(ranked), scores, beam.sweep + (not first), over or not fresh)
        if first and not over:
            continue
        yield beam


def _neighbours(strengths: Strengths, factors: Strengths, most: Strengths) -> list[Strengths]:
    """With one number raised, where that stays within its bound."""
    raised = [strengths._replace(**{n: getattr(strengths, n) * getattr(factors, n)}) for n in Strengths._fields]
    return [new for new, name in zip(raised, Strengths._fields, strict=True) if getattr(new, name) <= getattr(most, name)]
