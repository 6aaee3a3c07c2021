"""Searching the noise of a picture by trying: the best of several, steps from the best to its neighbours, and a tree of them.

A noise is a seed and turns from it: towards the noise of another seed, by a part of the angle between them. A picture that was
found so is written down in a few numbers. No gradients are needed, so any reward and any number of steps will do; ReNO is
`samplers.search.reno`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from samplers.lookup import nearest


@dataclass(frozen=True)
class TurnedNoise:
    """The noise of a seed, turned towards that of other seeds, one after another: (seed, part of the angle) each."""

    seed: int
    turns: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Tried:
    """A noise, how good its picture was, and the round it was tried in."""

    noise: TurnedNoise
    reward: float
    round: int


@dataclass(frozen=True)
class NoiseSearch:
    """How the pictures of a search are spent.

    fresh: seeds tried at first.
    children: neighbours tried in each later round, shared among the parents.
    parents: how many of the best so far have neighbours.
    strengths: of the turns of each later round, as parts of the angle to another noise.
    """

    fresh: int
    children: int = 0
    parents: int = 1
    strengths: tuple[float, ...] = ()

    @property
    def tries(self) -> int:
        """Pictures that are made."""
        return self.fresh + self.children * len(self.strengths)


NEAR = 0.2  # keeps 0.95 of a noise, as the paper's neighbours


def best_of(tries: int) -> NoiseSearch:
    """Every picture from a seed of its own: "random search" of the paper, the best of N."""
    return NoiseSearch(tries)


def zero_order(tries: int, children: int = 4, strength: float = NEAR) -> NoiseSearch:
    """One seed, then rounds of neighbours at one distance, each round about the best so far: "zero-order search"."""
    rounds = (tries - 1) // children
    return NoiseSearch(tries - rounds * children, children, 1, (strength,) * rounds)


def tree(tries: int, children: int = 4, parents: int = 2, strength: float = 0.5) -> NoiseSearch:
    """Half of the pictures from seeds, then rounds about the best `parents`, every round at half the distance of the last."""
    rounds = tries // 2 // children
    return NoiseSearch(tries - rounds * children, children, parents, tuple(strength / 2**i for i in range(rounds)))


METHODS: dict[str, tuple[Callable[..., NoiseSearch], tuple[str, ...]]] = {  # name -> (plan, the options it has)
    "best_of": (best_of, ()),
    "zero_order": (zero_order, ("children", "strength")),
    "tree": (tree, ("children", "parents", "strength")),
}


def plan_search(
    method: str, tries: int, *, children: int | None = None, parents: int | None = None, strength: float | None = None
) -> NoiseSearch:
    """The plan of a method by name; ValueError for a name, number or option that it does not have."""
    if method not in METHODS:
        near = nearest(str(method), METHODS)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"There is no search {method!r:.80}{hint} Known: {', '.join(METHODS)}.")
    _check_whole("tries", tries, 1, 100_000)
    make, options = METHODS[method]
    given = {"children": children, "parents": parents, "strength": strength}
    given = {name: value for name, value in given.items() if value is not None}
    if extra := next((name for name in given if name not in options), None):
        having = [name for name, (_, takes) in METHODS.items() if extra in takes]
        raise ValueError(f"The search {method!r} has no {extra}; leave it out, or use {' or '.join(having)}.")
    for name in ("children", "parents"):
        if name in given:
            _check_whole(name, given[name], 1, 1024)
    amount = given.get("strength", NEAR)
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount <= 1:
        raise ValueError(f"strength is {amount!r}; give a number above 0, up to 1.")
    return make(tries, **given)


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}; give a whole number from {low} to {high:,}.")


def search_noise(
    judge: Callable[[Sequence[TurnedNoise]], Sequence[float]], seeds: Iterator[int], plan: NoiseSearch
) -> list[Tried]:
    """All that was tried, the best first, of equals the earlier.

    judge: noises of a round -> how good their pictures are, higher for better.
    seeds: of new noises and of turns, as many as `plan.tries`. The first is the picture that would have been made anyway.
    Raises ValueError for a reward that is no number.

    Source: arXiv 2501.09732, section 3.1 (random and zero-order search).
    """
    tried: list[Tried] = []

    def run(noises: list[TurnedNoise], number: int) -> None:
        for noise, reward in zip(noises, judge(noises), strict=True):
            if math.isnan(reward):
                raise ValueError(f"The reward of the picture of seed {noise.seed} is not a number; use another reward.")
            tried.append(Tried(noise, float(reward), number))
        tried.sort(key=lambda one: -one.reward)  # stable

    run([TurnedNoise(next(seeds)) for _ in range(plan.fresh)], 0)
    for number, strength in enumerate(plan.strengths, 1):
        best = [one.noise for one in tried[: plan.parents]]
        parents = [best[i % len(best)] for i in range(plan.children)]
        run([TurnedNoise(p.seed, (*p.turns, (next(seeds), strength))) for p in parents], number)
    return tried
