"""Grids: which noise levels a run visits.

Every grid is a function (path, steps, ...) -> `steps` + 1 levels, falling in noise and ending in clean data (sigma = 0), so
that steps = 1 is one evaluation. Karras, exponential and polyexponential place sigma / alpha, which every path has, so one
grid means the same on all of them; the time grids place the path's own clock.

Default bounds, where a grid takes them: sigma_min and sigma_max on a variance-exploding path, the first and last finite
entry of a table, and t = 0.001 to 0.999 of any other path (rectified flow), whose ends are infinite in sigma / alpha. The time
grids need no bounds and start at the noisiest level there is: exact pure noise on a flow or a zero-terminal-SNR table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from samplers.path import NoiseLevel, Path, VarianceExploding, VariancePreserving

Grid = tuple[NoiseLevel, ...]


def karras(path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 7.0) -> Grid:
    """sigma / alpha evenly spaced in its power 1 / rho (arXiv 2206.00364, equation 5). rho > 0."""
    low, high = _bounds(path, sigma_min, sigma_max)
    _positive("rho", rho)
    a, b = high ** (1 / rho), low ** (1 / rho)
    return _from_ratios(path, [(a + u * (b - a)) ** rho for u in _ramp(steps)])


def exponential(path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None) -> Grid:
    """log(sigma / alpha) evenly spaced: the "logSNR" grid of DPM-Solver."""
    return polyexponential(path, steps, sigma_min, sigma_max, rho=1.0)


def polyexponential(
    path: Path, steps: int, sigma_min: float | None = None, sigma_max: float | None = None, rho: float = 1.0
) -> Grid:
    """log(sigma / alpha) as a power rho of an even ramp: rho > 1 spends more steps on low noise."""
    low, high = _bounds(path, sigma_min, sigma_max)
    _positive("rho", rho)
    span = math.log(high) - math.log(low)
    return _from_ratios(path, [math.exp((1 - u) ** rho * span + math.log(low)) for u in _ramp(steps)])


def uniform_logsnr(path: Path, steps: int, logsnr_min: float | None = None, logsnr_max: float | None = None) -> Grid:
    """Log-SNR evenly spaced from logsnr_min (noisy) to logsnr_max: `exponential` with its bounds in log-SNR."""
    for name, value in (("logsnr_min", logsnr_min), ("logsnr_max", logsnr_max)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}.")
    low = None if logsnr_max is None else math.exp(-logsnr_max)
    high = None if logsnr_min is None else math.exp(-logsnr_min)
    return exponential(path, steps, low, high)


def uniform_time(path: Path, steps: int, spacing: str = "trailing", rounded: bool = False, shift: float = 1.0) -> Grid:
    """The path's clock evenly spaced.

    spacing "trailing": from the noisiest level to 0 in equal parts. On a table of N timesteps also, as in diffusers,
    "leading": multiples of N // steps, from n = 0 up; "linspace": from n = N - 1 to 0. `rounded` keeps to a table's whole
    timesteps; other paths have none to round to. shift: t -> shift t / (1 + (shift - 1) t) on a clock from 0 to 1, the
    resolution shift of rectified flow (arXiv 2403.03206, equation 23); above 1 it spends more steps on high noise.
    """
    _whole(steps)
    _positive("shift", shift)
    if shift != 1 and path.t_noise != 1:
        raise ValueError(f"A shift needs a clock from 0 to 1; this path's runs to {path.t_noise}. Leave shift at 1.")
    if spacing not in ("trailing", "leading", "linspace"):
        raise ValueError(f"Unknown spacing {spacing!r}: choose trailing, leading or linspace.")
    if not isinstance(path, VariancePreserving):
        if spacing != "trailing":
            raise ValueError(f"{type(path).__name__} has no table of timesteps: use spacing='trailing', not {spacing!r}.")
        clock = [path.t_noise * (1 - i / steps) for i in range(steps)]
    else:
        size = len(path.table)
        if (rounded or spacing == "leading") and steps > size:
            raise ValueError(f"A table of {size} timesteps cannot give {steps} distinct ones: ask for at most {size} steps.")
        whole = round if rounded else float
        index: list[float]
        if spacing == "trailing":
            index = [whole(size - i * size / steps) - 1 for i in range(steps)]
        elif spacing == "leading":
            index = [(steps - 1 - i) * (size // steps) for i in range(steps)]
        else:
            index = [whole((size - 1) * (1 - u)) for u in _ramp(steps)]
        clock = [(n + 1) / size for n in index]
    return _from_clock(path, [shift * t / (1 + (shift - 1) * t) for t in clock])


def sgm_uniform(path: Path, steps: int) -> Grid:
    """A table's timesteps from N - 1 to 0 in `steps` equal parts, the last left out: ComfyUI's sgm_uniform.

    On a path without a table it is `uniform_time`.
    """
    if not isinstance(path, VariancePreserving):
        return uniform_time(path, steps)
    _whole(steps)
    size = len(path.table)
    return _from_clock(path, [((size - 1) * (1 - i / steps) + 1) / size for i in range(steps)])


def beta(path: Path, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Grid:
    """The clock at quantiles of a Beta(alpha, beta) distribution: more steps at both ends (arXiv 2407.12173).

    A table's timesteps run over 0 .. N - 1, continuous; another path's clock over (0, t_noise].
    """
    _whole(steps)
    _positive("alpha", alpha)
    _positive("beta", beta)
    quantiles = [_beta_quantile(1 - i / steps, alpha, beta) for i in range(steps)]
    if isinstance(path, VariancePreserving):
        size = len(path.table)
        return _from_clock(path, [(q * (size - 1) + 1) / size for q in quantiles])
    return _from_clock(path, [q * path.t_noise for q in quantiles])


# NVIDIA's ten-step tables of sigma / alpha, the last a stand-in for clean data (arXiv 2404.14507)
_ALIGNED = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(path: Path, steps: int, family: str = "sd15") -> Grid:
    """The optimised grids of Align Your Steps for sd15, sdxl or svd, interpolated in log sigma for other step counts."""
    _whole(steps)
    if family not in _ALIGNED:
        raise ValueError(f"Unknown family {family!r}: Align Your Steps has {', '.join(_ALIGNED)}.")
    logs = [math.log(v) for v in _ALIGNED[family]]
    ratios = []
    for i in range(steps):
        position = i / steps * (len(logs) - 1)
        left = int(position)
        ratios.append(math.exp(logs[left] + (position - left) * (logs[left + 1] - logs[left])))
    return _from_ratios(path, ratios)


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
        levels = [_at_ratio(path, v) for v in values]
    else:
        levels = [_at_ratio(path, math.exp(-v)) for v in values]
    if levels and levels[-1].sigma == 0:
        levels.pop()
    return _finish(path, levels)


def _whole(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"The number of steps must be a whole number of at least 1, got {steps!r}.")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}.")


def _ramp(steps: int) -> list[float]:
    """`steps` even points from 0 to 1, both included; one point is 0."""
    _whole(steps)
    return [i / max(steps - 1, 1) for i in range(steps)]


def _bounds(path: Path, low: float | None, high: float | None) -> tuple[float, float]:
    """(lowest, highest) sigma / alpha, with the path's defaults for what is None."""
    if isinstance(path, VarianceExploding):
        default_low, default_high = path.sigma_min, path.sigma_max
    elif isinstance(path, VariancePreserving):
        finite = [v for v in path.table if math.isfinite(v)]
        default_low, default_high = math.exp(-finite[0]), math.exp(-finite[-1])
    else:
        default_low, default_high = (math.exp(-path(u * path.t_noise).logsnr) for u in (0.001, 0.999))
    low, high = default_low if low is None else low, default_high if high is None else high
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"A grid in sigma / alpha needs 0 < sigma_min < sigma_max < infinity, got sigma_min={low} and sigma_max={high}."
        )
    return low, high


def _at_ratio(path: Path, ratio: float) -> NoiseLevel:
    """The level with sigma / alpha = ratio."""
    if isinstance(path, VarianceExploding):
        return path(ratio)  # its clock, without a detour through the logarithm
    return path.at_logsnr(-math.log(ratio) if ratio else math.inf)


def _from_ratios(path: Path, ratios: Sequence[float]) -> Grid:
    return _finish(path, [_at_ratio(path, r) for r in ratios])


def _from_clock(path: Path, clock: Sequence[float]) -> Grid:
    return _finish(path, [path(t) for t in clock])


def _finish(path: Path, levels: Sequence[NoiseLevel]) -> Grid:
    grid = (*levels, path(0.0))
    _whole(len(grid) - 1)
    for a, b in pairwise(grid):
        if not a.logsnr < b.logsnr:
            raise ValueError(
                f"The grid does not fall in noise: sigma/alpha {math.exp(-a.logsnr):.6g} is followed by "
                f"{math.exp(-b.logsnr):.6g}. Use fewer steps or wider bounds."
            )
    return grid


@lru_cache(maxsize=4096)
def _beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, by bisection to float64 precision."""
    if p in (0.0, 1.0):
        return p
    low, high = 0.0, 1.0
    while low < (middle := 0.5 * (low + high)) < high:
        if _beta_cdf(middle, a, b) < p:
            low = middle
        else:
            high = middle
    return middle


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)  # where the fraction converges fast
    if x == 0:
        return 0.0
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)) / a
    fraction = 1.0
    for m in range(60, 0, -1):  # from the tail inwards
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + odd / (1 + even / fraction)
    return front / fraction
