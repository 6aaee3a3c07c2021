"""Noise from one Brownian path per image: finer grids and overlapping steps see the same path.

`seeded_noise` draws afresh for every pair of levels. Here the noise of a step is an increment of a Brownian motion W in a
clock c(logsnr),

    z = (W(c_t) - W(c_s)) / sqrt(|c_t - c_s|),

so that the steps of any two grids are parts of one path: halved steps add up to the whole, and a solver whose stages overlap
gets correlated draws. W is not stored. It is a function of the seed: log-SNR is cut into cells of length 1 with independent
increments, and within a cell W follows from Brownian bridges at the midpoints of halves, of halves of halves and so on, every
one with a normal number drawn from (seed, cell, half). Any point is reached in the same number of draws in any order (the
virtual Brownian tree, arXiv 2001.01328, section 4, here in log-SNR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from samplers.noise import NoiseSource, check_kind, fold, normal, on_device
from samplers.path import NoiseLevel, wide_dtype
from samplers.philox import keys_of, philox_normal

DEPTH = 16  # halvings of a cell: two levels less than 2^-16 apart in log-SNR are not told apart exactly
KEPT = 8  # of the numbers of a cell, those of the whole and of the first three halvings stay in memory for a while
FARTHEST = 32  # levels beyond this |logsnr|, pure noise and clean data among them, count as this one

# |c(b) - c(a)| for logsnr a < b, without cancellation
CLOCKS: dict[str, Callable[[float, float], float]] = {
    "sigma": lambda a, b: -math.exp(-a) * math.expm1(a - b),  # c = sigma / alpha
    "logsnr": lambda a, b: b - a,
    "snr": lambda a, b: math.exp(2 * a) * math.expm1(2 * (b - a)),  # c = alpha^2 / sigma^2
}


def brownian_noise(seeds: Sequence[int], like: Tensor, clock: str = "snr", kind: str = "torch") -> NoiseSource:
    """The noise source of a run: unit normals shaped as `like` (B, C, H, W), row i from a Brownian path of seeds[i].

    clock: the time of the Brownian motion. "snr" is that of the reverse SDE with eta = 1, whose exact noise over a step is an
    increment of it, so that the noise of two half steps is that of the whole one; "sigma" is k-diffusion's; "logsnr" is
    neutral.
    kind: "torch" draws on the CPU and adds in float64, the same on every device, 14 to 18 draws for a step; "philox" draws the
    same numbers wherever `like` is, all of a step at once, and adds there, in float64 where the device has it.
    Raises ValueError for an unknown clock or kind of noise, or another number of seeds than rows.
    """
    if clock not in CLOCKS:
        raise ValueError(f"Unknown Brownian clock {clock!r}: choose one of {', '.join(CLOCKS)}.")
    if len(seeds) != len(like):
        raise ValueError(f"Brownian noise got {len(seeds)} seeds for a batch of {len(like)}: give one seed per image.")
    span, seeds = CLOCKS[clock], tuple(seeds)
    draws: _Draws = _PhiloxDraws(seeds, like) if check_kind(kind) == "philox" else _TorchDraws(seeds, like)

    @lru_cache(maxsize=2)  # the end of one step is the start of the next
    def head(position: float) -> Tensor:
        """W at a log-SNR less W at the start of its cell."""
        return draws.total(math.floor(position), head_weights(span, position))

    @lru_cache(maxsize=2)
    def whole(cell: int) -> Tensor:
        return draws.total(cell, {0: math.sqrt(span(cell, cell + 1))})

    def increment(a: float, b: float) -> Tensor:
        """W(b) - W(a) for a < b, cell by cell: every part as large as its own clock makes it."""
        if math.floor(a) == math.floor(b):
            return head(b) - head(a)
        total = whole(math.floor(a)) - head(a)
        for cell in range(math.floor(a) + 1, math.floor(b)):
            total = total + whole(cell)
        return total + head(b)

    def draw(s: NoiseLevel, t: NoiseLevel) -> Tensor:
        a, b = (min(max(float(level.logsnr), -FARTHEST), FARTHEST) for level in (s, t))
        if a == b:
            raise ValueError(f"Brownian noise between equal levels (logsnr {s.logsnr} and {t.logsnr}): give two that differ.")
        z = increment(min(a, b), max(a, b)) / math.copysign(math.sqrt(span(min(a, b), max(a, b))), b - a)
        return on_device(z, like.device, like.dtype)

    # other paths for going through the same levels again: see `samplers.noise.fork_noise`
    def fork(*key: int | float | str) -> NoiseSource:
        return brownian_noise([fold(seed, *key) for seed in seeds], like, clock, kind)

    draw.fork = fork  # type: ignore[attr-defined]
    return draw


Span = Callable[[float, float], float]
Weights = dict[int, float]  # of the numbers of a cell, by node: 0 is the whole cell's, 1 its middle's, 2 and 3 the halves'


@lru_cache(maxsize=256)
def head_weights(span: Span, position: float) -> Weights:
    """W at a log-SNR, less W at the start of its cell, as a sum of the numbers drawn at the nodes above it: by bridges, in
    float64 on the host. All that is left to do with tensors is that sum."""
    cell = math.floor(position)
    low, high, node = float(cell), float(cell + 1), 1
    w_low: Weights = {}
    w_high: Weights = {0: math.sqrt(span(low, high))}
    for _ in range(DEPTH):
        middle = (low + high) / 2
        w_middle = _bridge(span, low, middle, high, w_low, w_high, node)
        if position < middle:
            high, w_high, node = middle, w_middle, 2 * node
        else:
            low, w_low, node = middle, w_middle, 2 * node + 1
    return w_low if position == low else _bridge(span, low, position, high, w_low, w_high, node)


def _bridge(span: Span, low: float, middle: float, high: float, w_low: Weights, w_high: Weights, node: int) -> Weights:
    """W(middle) given W(low) and W(high): normal around the line between them in the clock."""
    before, after, all_of_it = span(low, middle), span(middle, high), span(low, high)
    share = before / all_of_it
    weights = {one: (1 - share) * w_low.get(one, 0.0) + share * w_high.get(one, 0.0) for one in {**w_low, **w_high}}
    weights[node] = math.sqrt(before * after / all_of_it)
    return weights


class _Draws(Protocol):
    """Where the numbers of nodes come from."""

    def total(self, cell: int, weights: Weights) -> Tensor:
        """The sum of a cell's numbers times their weights: (B, ...)."""
        ...


class _TorchDraws:
    """Drawn on the CPU one after another, and added in float64. Those that many positions share are kept for a while."""

    def __init__(self, seeds: tuple[int, ...], like: Tensor):
        self.seeds, self.shape = seeds, tuple(like.shape[1:])
        self.kept = lru_cache(maxsize=2 * KEPT)(self._draw)

    def _draw(self, cell: int, node: int) -> Tensor:
        return normal(self.seeds, self.shape, "brownian", cell, node)

    def total(self, cell: int, weights: Weights) -> Tensor:
        sum_ = torch.zeros((len(self.seeds), *self.shape), dtype=torch.float64)
        for node, weight in weights.items():
            sum_.add_(self.kept(cell, node) if node < KEPT else self._draw(cell, node), alpha=weight)
        return sum_


class _PhiloxDraws:
    """Drawn where they are needed, all of a position at once: its nodes follow from its place, whatever was drawn before."""

    def __init__(self, seeds: tuple[int, ...], like: Tensor):
        self.keys, self.shape = keys_of([fold(seed) for seed in seeds], like.device), tuple(like.shape[1:])
        self.dtype = wide_dtype(like.device)

    def total(self, cell: int, weights: Weights) -> Tensor:
        device = self.keys[0].device
        sum_ = torch.zeros((len(self.keys[0]), *self.shape), dtype=self.dtype, device=device)
        if weights:  # at the start of a cell there are none
            nodes = [torch.full((1,), node, dtype=torch.int64, device=device) for node in weights]  # filling waits for nothing
            drawn = philox_normal(self.keys, self.shape, fold(0, "brownian", cell), torch.stack(nodes))
            for i, weight in enumerate(weights.values()):
                sum_.add_(drawn[:, i], alpha=weight)
        return sum_
