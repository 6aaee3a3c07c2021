"""Grids on a path's own clock, or on the timesteps of its table."""

from __future__ import annotations

import math
from functools import lru_cache

from samplers.grids.common import Grid, check_positive, check_steps, finish, from_clock, ramp, ratio_bounds
from samplers.path import NoiseLevel, Path, VarianceExploding, VariancePreserving


def uniform_time(
    path: Path, steps: int, spacing: str = "trailing", rounded: bool = False, shift: float = 1.0, offset: int = 0
) -> Grid:
    """The path's clock evenly spaced.

    spacing "trailing": from the noisiest level to 0 in equal parts. On a table of N timesteps also, as in diffusers,
    "leading": multiples of N // steps, from n = `offset` up (diffusers' steps_offset; Stable Diffusion has 1); "linspace":
    from n = N - 1 to 0. `rounded` keeps to a table's whole timesteps; other paths have none to round to.
    shift: t -> shift t / (1 + (shift - 1) t) on a clock from 0 to 1, the resolution shift of rectified flow
    (arXiv 2403.03206, equation 23); above 1 it spends more steps on high noise.
    """
    check_steps(steps)
    if spacing not in ("trailing", "leading", "linspace"):
        raise ValueError(f"Unknown spacing {spacing!r}: choose trailing, leading or linspace.")
    if offset and spacing != "leading":
        raise ValueError(f"An offset of {offset} timesteps belongs to spacing='leading', not {spacing!r}.")
    if not isinstance(path, VariancePreserving):
        if spacing != "trailing":
            raise ValueError(f"{type(path).__name__} has no table of timesteps: use spacing='trailing', not {spacing!r}.")
        return from_clock(path, _shift(path, [path.t_noise * (1 - i / steps) for i in range(steps)], shift))
    size = len(path.table)
    if (rounded or spacing == "leading") and steps > size:
        raise ValueError(f"A table of {size} timesteps cannot give {steps} distinct ones: ask for at most {size} steps.")
    whole = round if rounded else float
    index: list[float]
    if spacing == "trailing":
        index = [whole(size - i * size / steps) - 1 for i in range(steps)]
    elif spacing == "leading":
        index = [float(n) for n in _leading(size, steps, offset)]
    else:
        index = [whole((size - 1) * (1 - u)) for u in ramp(steps)]
    return from_clock(path, _shift(path, [(n + 1) / size for n in index], shift))


def trigflow(path: Path, steps: int, start: float = math.pi / 2, middle: float = 1.3) -> Grid:
    """Even in the angle arctan(sigma / alpha), TrigFlow's time, from `start` down; of two steps the second is at `middle`.

    start, middle: radians above 0, from the path's noisiest level on if that is less; pi / 2 is pure noise.
    Source: SANA-Sprint, arXiv 2503.09641, whose two steps these are. ValueError for angles that do not fall.
    """
    check_steps(steps)
    check_positive("start", start)
    check_positive("middle", middle)
    noisiest = path(path.t_noise)
    top = math.atan2(noisiest.sigma, noisiest.alpha)
    first = min(start, top)
    angles = [first, middle] if steps == 2 else [first * (1 - i / steps) for i in range(steps)]
    return finish(path, [noisiest if a >= top else path.at_logsnr(-math.log(math.tan(a))) for a in angles])


def sgm_uniform(path: Path, steps: int, shift: float = 1.0) -> Grid:
    """A table's timesteps from N - 1 to 0 in `steps` equal parts, the last left out: ComfyUI's sgm_uniform.

    On a path without a table it is `uniform_time`.
    """
    if not isinstance(path, VariancePreserving):
        return uniform_time(path, steps, shift=shift)
    check_steps(steps)
    size = len(path.table)
    return from_clock(path, _shift(path, [((size - 1) * (1 - i / steps) + 1) / size for i in range(steps)], shift))


def simple(path: Path, steps: int, shift: float = 1.0) -> Grid:
    """Every (N / steps)-th timestep from the noisiest down, rounded towards noise: ComfyUI's simple."""
    check_steps(steps)
    size = _size(path)
    return _from_timesteps(path, [size - 1 - i * size // steps for i in range(steps)], shift)


def ddim_uniform(path: Path, steps: int, shift: float = 1.0, whole: bool = False) -> Grid:
    """Timesteps 1, 1 + N // steps, ...: the spacing of the DDIM code, ComfyUI's ddim_uniform and AUTOMATIC1111's DDIM.

    Always `steps` of them, unless `whole`: where N is not a multiple of steps, the reference goes on to the end of the table,
    one or more steps longer than asked.
    """
    check_steps(steps)
    size = _size(path)
    if whole:
        return _from_timesteps(path, list(range(1, size, max(size // steps, 1)))[::-1], shift)
    return _from_timesteps(path, _leading(size, steps, 1), shift)


def turbo(path: Path, steps: int, shift: float = 1.0) -> Grid:
    """Timesteps k N / steps - 1 for k = steps, ..., 1, rounded: Forge's Turbo, for models distilled to few steps.

    Of 10 steps the first ones are those of SDXL-Turbo's node in ComfyUI.
    """
    check_steps(steps)
    size = _size(path)
    if steps > size:
        raise ValueError(f"A table of {size} timesteps cannot give {steps} distinct ones: ask for at most {size} steps.")
    return _from_timesteps(path, [min(max(round(k * (size / steps) - 1), 0), size - 1) for k in range(steps, 0, -1)], shift)


def normal(path: Path, steps: int, shift: float = 1.0) -> Grid:
    """Timesteps evenly spaced from N - 1 to 0, both included and not rounded: ComfyUI's and k-diffusion's "normal"."""
    return _from_timesteps(path, [(_size(path) - 1) * (1 - u) for u in ramp(steps)], shift)


def quadratic(path: Path, steps: int, t_min: float | None = None, power: float = 2.0) -> Grid:
    """The clock evenly spaced in its power 1 / power, from the noisiest level to t_min: DPM-Solver's quadratic time.

    t_min: the first entry of a table, sigma_min of a variance-exploding path, else a thousandth of the clock.
    Source: arXiv 2206.00927, section 5 ("time_quadratic"); power as the kappa of DEIS (arXiv 2204.13902, equation 42).
    """
    check_positive("power", power)
    if t_min is None:
        t_min = path.sigma_min if isinstance(path, VarianceExploding) else path.t_noise / _size(path)
    if not 0 < t_min < path.t_noise:
        raise ValueError(f"t_min must lie between 0 and the noisiest level's {path.t_noise}, got {t_min}.")
    a, b = path.t_noise ** (1 / power), t_min ** (1 / power)
    return from_clock(path, [path.t_noise if u == 0 else (a + u * (b - a)) ** power for u in ramp(steps)])


def beta(path: Path, steps: int, alpha: float = 0.6, beta: float = 0.6, shift: float = 1.0) -> Grid:
    """The clock at quantiles of a Beta(alpha, beta) distribution: more steps at both ends (arXiv 2407.12173).

    A table's timesteps run over 0 .. N - 1, continuous; another path's clock over (0, t_noise].
    """
    check_steps(steps)
    check_positive("alpha", alpha)
    check_positive("beta", beta)
    quantiles = [beta_quantile(1 - i / steps, alpha, beta) for i in range(steps)]
    if isinstance(path, VariancePreserving):
        size = len(path.table)
        return from_clock(path, _shift(path, [(q * (size - 1) + 1) / size for q in quantiles], shift))
    return from_clock(path, _shift(path, [q * path.t_noise for q in quantiles], shift))


def _shift(path: Path, clock: list[float], shift: float) -> list[float]:
    """t -> shift t / (1 + (shift - 1) t), which multiplies t / (1 - t)."""
    check_positive("shift", shift)
    if shift != 1 and path.t_noise != 1:
        raise ValueError(f"A shift needs a clock from 0 to 1; this path's runs to {path.t_noise}. Leave shift at 1.")
    return [shift * t / (1 + (shift - 1) * t) for t in clock]


def _size(path: Path) -> int:
    """Timesteps in a path's table, or the 1000 that paths without one are divided into."""
    return len(path.table) if isinstance(path, VariancePreserving) else 1000


def _leading(size: int, steps: int, offset: int) -> list[int]:
    stride = size // steps
    if stride < 1 or not 0 <= offset + (steps - 1) * stride < size:
        raise ValueError(f"{size} timesteps cannot give {steps} distinct ones from number {offset} up: ask for fewer steps.")
    return [offset + (steps - 1 - i) * stride for i in range(steps)]


def _from_timesteps(path: Path, index: list[int] | list[float], shift: float) -> Grid:
    """Levels by 0-based timestep, whole or between two: of a table; of a clock cut into 1000 parts; of sigma cut in its log."""
    size = _size(path)
    if not isinstance(path, VarianceExploding):
        return from_clock(path, _shift(path, [path.t_noise * (n + 1) / size for n in index], shift))
    _shift(path, [], shift)
    low, high = ratio_bounds(path)

    def level(n: float) -> NoiseLevel:
        return path(high if n == size - 1 else low * (high / low) ** (n / (size - 1)))

    return finish(path, [level(n) for n in index])


@lru_cache(maxsize=4096)
def beta_quantile(p: float, a: float, b: float) -> float:
    """x with I_x(a, b) = p, by bisection to float64 precision."""
    if p in (0.0, 1.0) or (p == 0.5 and a == b):  # the middle exactly: a schedule that rounds must see the tie
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
