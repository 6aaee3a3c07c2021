"""ComfyUI's schedules, on its own sigma.

ComfyUI keeps a model's sigmas as a table, and its schedules are functions of that table. On variance-preserving tables and on
variance-exploding paths its sigma is sigma / alpha; on flow models it is the clock t, shifted, so that karras, exponential and
kl_optimal are other levels there than those of the same names, which are even in sigma / alpha.

`shift` and `entries` are those of a flow model's table: SD3 has a shift of 3, AuraFlow 1.73; Flux has 10,000 entries and the
shift exp(1.15) = 3.158. Where the table is shifted, normal and sgm_uniform shift the clock of its last entry once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from samplers.grids.clock import beta_quantile
from samplers.grids.common import Grid, check_positive, check_steps, finish, ramp
from samplers.noise_ratio import at_ratio
from samplers.path import Path, RectifiedFlow, VarianceExploding, VariancePreserving

MOST_ENTRIES = 100_000
PURE_NOISE = 4.8973451890853435e-08  # alpha^2 that ComfyUI gives the last entry of a zero-terminal-SNR table


@dataclass(frozen=True)
class SigmaTable:
    """ComfyUI's sigmas of a model, cleanest first, and its clock between them."""

    path: Path
    shift: float = 1.0
    entries: int = 1000

    def __post_init__(self) -> None:
        check_positive("shift", self.shift)
        if isinstance(self.entries, bool) or not isinstance(self.entries, int) or not 2 <= self.entries <= MOST_ENTRIES:
            raise ValueError(f"A model's table needs at least 2 entries, and at most {MOST_ENTRIES}, in entries.")
        if not isinstance(self.path, RectifiedFlow) and (self.shift, self.entries) != (1.0, 1000):
            raise ValueError(
                f"shift and entries are of a flow model's table, and {type(self.path).__name__} is none: leave them out."
            )

    @property
    def sigmas(self) -> tuple[float, ...]:
        path: Any = self.path  # paths are frozen, so they are keys
        return _sigmas(path, self.shift, self.entries)

    def shifted(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def even(self, u: float) -> float:
        """Sigma at a part u of the way from the noisiest entry to the cleanest, on the model's own clock."""
        first, last = self.sigmas[-1], self.sigmas[0]
        if isinstance(self.path, RectifiedFlow):
            return self.shifted(first + u * (last - first))
        if isinstance(self.path, VarianceExploding):
            return first if u == 0 else math.exp((1 - u) * math.log(first) + u * math.log(last))
        place = (len(self.sigmas) - 1) * (1 - u)
        low = math.floor(place)
        if low == place:
            return self.sigmas[low]
        a, b = math.log(self.sigmas[low]), math.log(self.sigmas[low + 1])
        return math.exp(a + (place - low) * (b - a))

    def grid(self, sigmas: Sequence[float]) -> Grid:
        if isinstance(self.path, RectifiedFlow):
            return finish(self.path, [self.path(s) for s in sigmas])
        return finish(self.path, [at_ratio(self.path, s) for s in sigmas])


@lru_cache(maxsize=32)
def _sigmas(path: Any, shift: float, entries: int) -> tuple[float, ...]:
    if isinstance(path, VarianceExploding):
        low, high = math.log(path.sigma_min), math.log(path.sigma_max)
        return (
            path.sigma_min,
            *(math.exp(low + (high - low) * i / (entries - 1)) for i in range(1, entries - 1)),
            path.sigma_max,
        )
    if isinstance(path, RectifiedFlow):
        clock = [(i + 1) / entries for i in range(entries)]
        return tuple(shift * t / (1 + (shift - 1) * t) for t in clock)
    if isinstance(path, VariancePreserving):
        logsnr: Sequence[float] = path.table
    else:
        logsnr = [path((i + 1) / entries * path.t_noise).logsnr for i in range(entries)]
    clipped = math.sqrt((1 - PURE_NOISE) / PURE_NOISE)
    return tuple(math.exp(-v) if v > -math.inf else clipped for v in logsnr)


def _bounds(path: Path, shift: float, entries: int) -> tuple[SigmaTable, float, float]:
    table = SigmaTable(path, shift, entries)
    return table, table.sigmas[0], table.sigmas[-1]


def karras(path: Path, steps: int, shift: float = 1.0, entries: int = 1000, rho: float = 7.0) -> Grid:
    """Sigma evenly spaced in its power 1 / rho, between the ends of the table."""
    check_positive("rho", rho)
    table, low, high = _bounds(path, shift, entries)
    a, b = high ** (1 / rho), low ** (1 / rho)
    return table.grid([high if u == 0 else (a + u * (b - a)) ** rho for u in ramp(steps)])


def exponential(path: Path, steps: int, shift: float = 1.0, entries: int = 1000) -> Grid:
    """log sigma evenly spaced, between the ends of the table."""
    table, low, high = _bounds(path, shift, entries)
    span = math.log(low) - math.log(high)
    return table.grid([high if u == 0 else math.exp(math.log(high) + u * span) for u in ramp(steps)])


def kl_optimal(path: Path, steps: int, shift: float = 1.0, entries: int = 1000) -> Grid:
    """arctan sigma evenly spaced, between the ends of the table."""
    table, low, high = _bounds(path, shift, entries)
    a, b = math.atan(high), math.atan(low)
    return table.grid([high if u == 0 else math.tan(a + u * (b - a)) for u in ramp(steps)])


def normal(path: Path, steps: int, shift: float = 1.0, entries: int = 1000) -> Grid:
    """The model's clock evenly, both ends included: AUTOMATIC1111's Uniform too."""
    table = SigmaTable(path, shift, entries)
    return table.grid([table.even(u) for u in ramp(steps)])


def sgm_uniform(path: Path, steps: int, shift: float = 1.0, entries: int = 1000) -> Grid:
    """The model's clock evenly in `steps` parts, the last left out."""
    check_steps(steps)
    table = SigmaTable(path, shift, entries)
    return table.grid([table.even(i / steps) for i in range(steps)])


def simple(path: Path, steps: int, shift: float = 1.0, entries: int = 1000) -> Grid:
    """Every (N / steps)-th entry of the table from the noisiest down, rounded towards noise."""
    check_steps(steps)
    table = SigmaTable(path, shift, entries)
    size = len(table.sigmas)
    return table.grid([table.sigmas[-(1 + int(i * (size / steps)))] for i in range(steps)])


def beta(path: Path, steps: int, alpha: float = 0.6, beta: float = 0.6, shift: float = 1.0, entries: int = 1000) -> Grid:
    """Entries of the table at quantiles of a Beta distribution, rounded to whole ones (arXiv 2407.12173).

    Where two steps come to one entry ComfyUI runs fewer steps; here that is an error, with the number that fits.
    """
    check_steps(steps)
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    table = SigmaTable(path, shift, entries)
    index = [round(beta_quantile(1 - i / steps, alpha, beta) * (len(table.sigmas) - 1)) for i in range(steps)]
    if (distinct := len(set(index))) < steps:
        raise ValueError(
            f"{steps} steps of this schedule come to {distinct} different entries of the model's table: ask for fewer steps, "
            "or for the schedule 'beta', which does not round."
        )
    return table.grid([table.sigmas[i] for i in index])
