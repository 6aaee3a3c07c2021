"""What all grids share: checks, default bounds, and the levels made from ratios or clock values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from samplers.noise_ratio import at_ratio
from samplers.path import NoiseLevel, Path, VarianceExploding, VariancePreserving

Grid = tuple[NoiseLevel, ...]


def check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"The number of steps must be a whole number of at least 1, got {steps!r}.")


def check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}.")


def ramp(steps: int) -> list[float]:
    """`steps` even points from 0 to 1, both included; one point is 0."""
    check_steps(steps)
    return [i / max(steps - 1, 1) for i in range(steps)]


def ratio_bounds(path: Path, low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """(lowest, highest) sigma / alpha, with the path's defaults for what is None."""
    if isinstance(path, VarianceExploding):
        default_low, default_high = path.sigma_min, path.sigma_max
    elif isinstance(path, VariancePreserving):
        finite = [v for v in path.table if math.isfinite(v)]
        default_low, default_high = math.exp(-finite[0]), math.exp(-finite[-1])
    else:
        noisiest = 1.0 if path(path.t_noise).alpha else 0.999
        default_low, default_high = (math.exp(-path(u * path.t_noise).logsnr) for u in (0.001, noisiest))
    low, high = default_low if low is None else low, default_high if high is None else high
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"A grid in sigma / alpha needs 0 < sigma_min < sigma_max < infinity, got sigma_min={low} and sigma_max={high}."
        )
    return low, high


def from_ratios(path: Path, ratios: Sequence[float]) -> Grid:
    return finish(path, [at_ratio(path, r) for r in ratios])


def from_clock(path: Path, clock: Sequence[float]) -> Grid:
    return finish(path, [path(t) for t in clock])


def finish(path: Path, levels: Sequence[NoiseLevel]) -> Grid:
    """The levels followed by clean data. Raises ValueError unless they are finite and fall strictly in noise."""
    grid = (*levels, path(0.0))
    check_steps(len(grid) - 1)
    for level in grid:
        if not (math.isfinite(level.t) and math.isfinite(level.sigma)):
            raise ValueError(f"The grid asks for a level that {type(path).__name__} does not have: sigma {level.sigma}.")
    for a, b in pairwise(grid):
        if not a.logsnr < b.logsnr:
            raise ValueError(
                f"The grid does not fall in noise: log-SNR {a.logsnr:.6g} is followed by {b.logsnr:.6g}. "
                "Use fewer steps or wider bounds."
            )
    return grid
