"""Evolutionary search over which timesteps a run visits, and which layers it leaves out (AutoDiffusion, arXiv 2309.10438)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from samplers.grids import Grid
from samplers.noise import fold
from samplers.path import NoiseLevel


@dataclass(frozen=True)
class Candidate:
    """`steps`: indices into a pool of levels, rising. `skips`: for each step the layers left out there, rising."""

    steps: tuple[int, ...]
    skips: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Space:
    """All candidates with `steps` of `size` pool levels, and at most `max_skips` of `layers` layers left out per step.

    `always` indices are in every candidate: (0,) keeps the noisiest level as the start.
    """

    size: int
    steps: int
    layers: int = 0
    max_skips: int = 0
    always: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= self.size:
            raise ValueError(f"A candidate takes 1 to {self.size} of {self.size} levels, got steps={self.steps}.")
        if not 0 <= self.max_skips <= self.layers:
            raise ValueError(f"max_skips must lie between 0 and the {self.layers} layers, got {self.max_skips}.")
        if len({*self.always}) > self.steps or not all(0 <= i < self.size for i in self.always):
            raise ValueError(f"always={self.always} does not fit {self.steps} steps out of {self.size} levels.")

    @property
    def count(self) -> int:
        """How many candidates there are."""
        fixed = len({*self.always})
        subsets = math.comb(self.size - fixed, self.steps - fixed)
        return subsets * sum(math.comb(self.layers, k) for k in range(self.max_skips + 1)) ** self.steps

    def holds(self, candidate: Candidate) -> bool:
        steps, skips = candidate.steps, candidate.skips
        return (
            len(steps) == len(skips) == self.steps
            and list(steps) == sorted({*steps} | {*self.always})
            and all(0 <= i < self.size for i in steps)
            and all(list(s) == sorted({*s}) and len(s) <= self.max_skips for s in skips)
            and all(0 <= layer < self.layers for s in skips for layer in s)
        )

    def random(self, rng: Random) -> Candidate:
        free = [i for i in range(self.size) if i not in self.always]
        steps = sorted({*self.always, *rng.sample(free, self.steps - len({*self.always}))})
        return Candidate(tuple(steps), tuple(self._skip(rng) for _ in steps))

    def mutate(self, parent: Candidate, rng: Random, rate: float) -> Candidate:
        """Each free step moves to an unused level, and each step's skips are drawn anew, with probability `rate`."""
        genes = dict(zip(parent.steps, parent.skips, strict=True))
        for step in parent.steps:
            unused = [i for i in range(self.size) if i not in genes]
            if step not in self.always and unused and rng.random() < rate:
                genes[rng.choice(unused)] = genes.pop(step)
        for step in sorted(genes):
            if self.max_skips and rng.random() < rate:
                genes[step] = self._skip(rng)
        return _candidate(genes)

    def cross(self, a: Candidate, b: Candidate, rng: Random) -> Candidate:
        """The steps both parents have, and a random choice of the others; skips come along with their step."""
        first, second = (dict(zip(p.steps, p.skips, strict=True)) for p in (a, b))
        common = sorted(first.keys() & second.keys())
        rest = rng.sample(sorted(first.keys() ^ second.keys()), self.steps - len(common))
        genes = {step: (first if rng.random() < 0.5 else second)[step] for step in common}
        return _candidate(genes | {step: (first if step in first else second)[step] for step in rest})

    def _skip(self, rng: Random) -> tuple[int, ...]:
        return tuple(sorted(rng.sample(range(self.layers), rng.randint(0, self.max_skips)))) if self.max_skips else ()


def _candidate(genes: Mapping[int, tuple[int, ...]]) -> Candidate:
    steps = sorted(genes)
    return Candidate(tuple(steps), tuple(genes[s] for s in steps))


def pick(pool: Sequence[NoiseLevel], candidate: Candidate) -> Grid:
    """The grid of a candidate: its levels of the pool, then the pool's last (clean data), which is not one of the choices."""
    return (*(pool[i] for i in candidate.steps), pool[-1])


@dataclass(frozen=True)
class Search:
    """A search between two generations: all it needs to go on. `scores` in the order in which they were measured."""

    space: Space
    seed: int = 0
    generation: int = 0
    scores: Mapping[Candidate, float] = field(default_factory=dict)

    @property
    def best(self) -> tuple[Candidate, float]:
        """The candidate with the lowest score, the earlier one of equals."""
        return min(self.scores.items(), key=lambda item: item[1])


def evolve(
    search: Search,
    fitness: Callable[[Candidate], float],
    budget: int,
    *,
    population: int = 50,
    parents: int = 10,
    mutations: int = 25,
    crossovers: int = 15,
    rate: float = 0.25,
) -> Iterator[Search]:
    """Yield the search after each generation, until `budget` candidates have been measured or the space is used up.

    fitness: lower is better (FID, or a distance to long runs); infinity rules a candidate out. The first generation is
    `population` random candidates; a later one `mutations` and `crossovers` of the best `parents`, filled with random ones.
    No candidate is measured twice. A generation is a function of (seed, its number, the scores so far), so a saved search
    that is handed back goes on as if it had not stopped (a budget that ends within a generation cuts that one short).
    """
    if budget < 1 or population < 1 or parents < 1 or min(mutations, crossovers) < 0 or not 0 < rate <= 1:
        raise ValueError("Give budget, population, parents >= 1, mutations, crossovers >= 0 and 0 < rate <= 1.")
    limit = min(budget, search.space.count)
    while len(search.scores) < limit:
        ranked = sorted(search.scores, key=lambda c: search.scores[c])[:parents]
        chosen: dict[Candidate, None] = {}
        for candidate in _offspring(search, ranked, mutations, crossovers, rate):
            if candidate not in search.scores:
                chosen[candidate] = None
            if len(chosen) == min(population, limit - len(search.scores)):
                break
        scores = dict(search.scores)
        for candidate in chosen:
            score = scores[candidate] = float(fitness(candidate))
            if math.isnan(score):
                raise ValueError(f"The fitness of {candidate} is not a number; return infinity to rule a candidate out.")
        search = Search(search.space, search.seed, search.generation + 1, scores)
        yield search


def _offspring(search: Search, ranked: list[Candidate], mutations: int, crossovers: int, rate: float) -> Iterator[Candidate]:
    """Endless; every draw from its own seed."""
    space, draw = search.space, 0

    def rng() -> Random:
        nonlocal draw
        draw += 1
        return Random(fold(search.seed, "evolution", search.generation, draw))

    for _ in range(mutations if ranked else 0):
        r = rng()
        yield space.mutate(r.choice(ranked), r, rate)
    for _ in range(crossovers if len(ranked) > 1 else 0):
        r = rng()
        first, second = r.sample(ranked, 2)
        yield space.cross(first, second, r)
    while True:
        yield space.random(rng())
