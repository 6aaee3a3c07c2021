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

import torch
from torch import Tensor

from samplers.noise import NoiseSource, fold, normal
from samplers.path import NoiseLevel

DEPTH = 16  # halvings of a cell: two levels less than 2^-16 apart in log-SNR are not told apart exactly
FARTHEST = 32  # levels beyond this |logsnr|, pure noise and clean data among them, count as this one

# |c(b) - c(a)| for logsnr a < b, without cancellation
CLOCKS: dict[str, Callable[[float, float], float]] = {
    "sigma": lambda a, b: -math.exp(-a) * math.expm1(a - b),  # c = sigma / alpha
    "logsnr": lambda a, b: b - a,
    "snr": lambda a, b: math.exp(2 * a) * math.expm1(2 * (b - a)),  # c = alpha^2 / sigma^2
}


def brownian_noise(seeds: Sequence[int], like: Tensor, clock: str = "snr") -> NoiseSource:
    """The noise source of a run: unit normals shaped as `like` (B, C, H, W), row i from a Brownian path of seeds[i].

    clock: the time of the Brownian motion. "snr" is that of the reverse SDE with eta = 1, whose exact noise over a step is an
    increment of it, so that the noise of two half steps is that of the whole one; "sigma" is k-diffusion's; "logsnr" is
    neutral. Numbers are drawn on the CPU and added in float64, the same on every device. A step costs about 20 draws.
    Raises ValueError for an unknown clock or another number of seeds than rows.
    """
    if clock not in CLOCKS:
        raise ValueError(f"Unknown Brownian clock {clock!r}: choose one of {', '.join(CLOCKS)}.")
    if len(seeds) != len(like):
        raise ValueError(f"Brownian noise got {len(seeds)} seeds for a batch of {len(like)}: give one seed per image.")
    span, seeds, shape = CLOCKS[clock], tuple(seeds), tuple(like.shape[1:])

    def unit(cell: int, node: int) -> Tensor:
        return normal(seeds, shape, "brownian", cell, node, dtype=torch.float64)

    @lru_cache(maxsize=2)  # the end of one step is the start of the next
    def head(position: float) -> Tensor:
        """W at a log-SNR less W at the start of its cell."""
        cell = math.floor(position)
        low, high, node = float(cell), float(cell + 1), 1
        w_low = torch.zeros((len(seeds), *shape), dtype=torch.float64)
        w_high = whole(cell)
        for _ in range(DEPTH):
            middle = (low + high) / 2
            w_middle = _bridge(span, low, middle, high, w_low, w_high, unit(cell, node))
            if position < middle:
                high, w_high, node = middle, w_middle, 2 * node
            else:
                low, w_low, node = middle, w_middle, 2 * node + 1
        return w_low if position == low else _bridge(span, low, position, high, w_low, w_high, unit(cell, node))

    @lru_cache(maxsize=2)
    def whole(cell: int) -> Tensor:
        return math.sqrt(span(cell, cell + 1)) * unit(cell, 0)

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
        return z.to(device=like.device, dtype=like.dtype)

    # other paths for going through the same levels again: see `samplers.noise.fork_noise`
    draw.fork = lambda *key: brownian_noise([fold(seed, *key) for seed in seeds], like, clock)  # type: ignore[attr-defined]
    return draw


def _bridge(
    span: Callable[[float, float], float], low: float, middle: float, high: float, w_low: Tensor, w_high: Tensor, z: Tensor
) -> Tensor:
    """W(middle) given W(low) and W(high): normal around the line between them in the clock."""
    before, after, all_of_it = span(low, middle), span(middle, high), span(low, high)
    return w_low + (before / all_of_it) * (w_high - w_low) + math.sqrt(before * after / all_of_it) * z
