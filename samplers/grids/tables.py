"""Grids that are lists: published ones and the user's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from samplers.grids.common import Grid, check_steps, finish, from_clock, from_ratios
from samplers.noise_ratio import at_ratio
from samplers.path import Path, RectifiedFlow

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


# Forge's lists: those above with their last value visited, a list of 32, and one of GITS
_VISITED: dict[str, dict[str, Sequence[float]]] = {
    "11": {name: _ALIGNED[name] for name in ("sd15", "sdxl")},
    "gits": {
        "sd15": (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029),
        "sdxl": (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029),
    },
    "32": {
        "sd15": (
            *(14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609, 3.13490466),
            *(2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953, 1.314849, 1.16642497),
            *(1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202, 0.4529096, 0.37491455, 0.27461819),
            *(0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015),
        ),
        "sdxl": (
            *(14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527),
            *(2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886, 0.69660121),
            *(0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517, 0.26518925, 0.22326461, 0.17653877),
            *(0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015),
        ),
    },
}
_COMFY_ALIGNED = {
    "sd15": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904, 0.6523686016),
        *(0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "sdxl": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289, 0.3798540708),
        *(0.2332364134, 0.1114188177, 0.0291671582),
    ),
    "svd": _ALIGNED["svd"],
}
_OPTIMAL = {
    "flux": (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    "wan": (
        *(1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96, 0.946, 0.927, 0.902, 0.864),
        *(0.776, 0.539, 0.208, 0.001),
    ),
    "chroma": (
        *(0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9, 0.881, 0.858, 0.832),
        *(0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355, 0.311, 0.27, 0.232, 0.199, 0.169, 0.143),
        *(0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001),
    ),
}


def interpolated(values: Sequence[float], count: int) -> list[float]:
    """`count` values (the first where it is 1) along a list, log-linear between neighbours."""
    logs = [math.log(v) for v in values]
    between = []
    for i in range(count):
        place = i / max(count - 1, 1) * (len(logs) - 1)
        left = min(int(place), len(logs) - 2)
        on_it = place == left
        between.append(values[left] if on_it else math.exp(logs[left] + (place - left) * (logs[left + 1] - logs[left])))
    return between


def _family(tables: Mapping[str, Sequence[float]], family: str, what: str) -> Sequence[float]:
    if family not in tables:
        raise ValueError(f"Unknown family {family!r}: {what} has {', '.join(tables)}.")
    return tables[family]


def visited_steps(path: Path, steps: int, which: str = "11", family: str = "sd15") -> Grid:
    """Forge's Align Your Steps 11, 32 and GITS: every value of a list is visited, the last too, then clean data.

    With other step counts the list is interpolated in log sigma. AUTOMATIC1111's Align Your Steps is the list "11".
    """
    check_steps(steps)
    return from_ratios(path, interpolated(_family(_VISITED[which], family, f"Align Your Steps {which}"), steps))


def comfy_aligned_steps(path: Path, steps: int, family: str = "sd15") -> Grid:
    """Align Your Steps by ComfyUI's digits: sd15, sdxl or svd, clean data in place of the last value."""
    check_steps(steps)
    return from_ratios(path, interpolated(_family(_COMFY_ALIGNED, family, "Align Your Steps"), steps + 1)[:-1])


def optimal_steps(path: Path, steps: int, family: str = "flux") -> Grid:
    """The clocks that OptimalSteps (arXiv 2503.21774) found for flux, wan or chroma, clean data in place of the last.

    Interpolated in log t for step counts other than those of the list (10, 20 and 40).
    """
    check_steps(steps)
    if not isinstance(path, RectifiedFlow):
        raise ValueError(f"Optimal steps are clocks of rectified flow models, and this is {type(path).__name__}.")
    return from_clock(path, interpolated(_family(_OPTIMAL, family, "Optimal steps"), steps + 1)[:-1])


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
