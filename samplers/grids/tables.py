"""Grids that are lists: published ones and the user's own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from samplers.grids.common import Grid, at_ratio, check_steps, finish, from_ratios
from samplers.path import Path

# NVIDIA's ten-step tables of sigma / alpha, the last a stand-in for clean data (arXiv 2404.14507)
_ALIGNED = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(path: Path, steps: int, family: str = "sd15") -> Grid:
    """The optimised grids of Align Your Steps for sd15, sdxl or svd, interpolated in log sigma for other step counts."""
    check_steps(steps)
    if family not in _ALIGNED:
        raise ValueError(f"Unknown family {family!r}: Align Your Steps has {', '.join(_ALIGNED)}.")
    logs = [math.log(v) for v in _ALIGNED[family]]
    ratios = []
    for i in range(steps):
        position = i / steps * (len(logs) - 1)
        left = int(position)
        ratios.append(math.exp(logs[left] + (position - left) * (logs[left + 1] - logs[left])))
    return from_ratios(path, ratios)


def from_table(path: Path, values: Sequence[float], unit: str = "t") -> Grid:
    """Exactly these levels, noisiest first, then clean data: values of the clock t, of sigma (/ alpha), or of logsnr."""
    values = [float(v) for v in values]
    if unit not in ("t", "sigma", "logsnr"):
        raise ValueError(f"Unknown unit {unit!r}: choose t, sigma (meaning sigma / alpha) or logsnr.")
    if any(math.isnan(v) for v in values):
        raise ValueError("A grid's values must be numbers; one is NaN.")
    if unit != "logsnr" and any(v < 0 for v in values):
        raise ValueError(f"A grid in {unit} cannot hold negative values, got {min(values)}.")
    if unit == "t":
        if any(v > path.t_noise for v in values):
            raise ValueError(f"This path's clock runs from 0 to {path.t_noise}; the grid holds {max(values)}.")
        levels = [path(v) for v in values]
    elif unit == "sigma":
        levels = [at_ratio(path, v) for v in values]
    else:
        levels = [at_ratio(path, math.exp(-v) if v > -700 else math.inf) for v in values]
    if levels and levels[-1].sigma == 0:
        levels.pop()
    return finish(path, levels)


def table(path: Path, steps: int, values: Sequence[float] = (), unit: str = "sigma", pure_noise: bool = False) -> Grid:
    """`from_table` as a grid of `steps` steps, with pure noise before the values if asked for: JSON has no infinity."""
    check_steps(steps)
    if isinstance(values, str) or not values:
        raise ValueError(f"The grid 'table' needs values, the levels noisiest first; it was given {values!r}.")
    first = {"t": path.t_noise, "logsnr": -math.inf}.get(unit, math.inf)
    levels = from_table(path, [first, *values] if pure_noise else values, unit)
    if len(levels) - 1 != steps:
        raise ValueError(
            f"This table makes {len(levels) - 1} steps, but {steps} were asked for; leave the number of steps out."
        )
    return levels
