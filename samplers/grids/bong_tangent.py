"""Bong tangent: two falling arctangents on the clock of a flow."""

from __future__ import annotations

import math

from samplers.grids.common import Grid, check_positive, check_steps, from_clock
from samplers.path import Path, RectifiedFlow


def _fall(count: int, slope: float, pivot: float, high: float, low: float) -> list[float]:
    """`count` values of -arctan(slope (i - pivot)), scaled to run from `high` to `low`."""
    curve = [-math.atan(slope * (i - pivot)) for i in range(count)]
    if count == 1:
        return [high]
    first, last = curve[0], curve[-1]
    return [low + (high - low) * (v - last) / (first - last) for v in curve]


def bong_tangent(
    path: Path,
    steps: int,
    middle: float = 0.5,
    pivot_1: float = 0.6,
    pivot_2: float = 0.6,
    slope_1: float = 0.2,
    slope_2: float = 0.2,
) -> Grid:
    """RES4LYF's schedule for flow models: t falls from 1 to `middle` along one arctangent, and to 0 along another.

    pivots: where each falls fastest, as parts of the steps, and their mean is where the second begins. slopes: how fast, for 40
    steps; other counts are scaled. ValueError on paths that are no rectified flow: its values are clocks.
    """
    check_steps(steps)
    if not isinstance(path, RectifiedFlow):
        raise ValueError(f"bong_tangent gives clocks of rectified flow models, and this is {type(path).__name__}.")
    for name, value in (("middle", middle), ("pivot_1", pivot_1), ("pivot_2", pivot_2)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
    check_positive("slope_1", slope_1)
    check_positive("slope_2", slope_2)
    if steps == 1:
        return from_clock(path, [1.0])
    points = steps + 2  # the end of the first curve is the start of the second
    seam = int(points * (pivot_1 + pivot_2) / 2)
    one, two = slope_1 * 40 / points, slope_2 * 40 / points
    first = _fall(seam, one, int(points * pivot_1), 1.0, middle)[:-1]
    second = _fall(points - seam, two, int(points * pivot_2) - seam, middle, 0.0)
    return from_clock(path, [*first, *second[:-1]])
