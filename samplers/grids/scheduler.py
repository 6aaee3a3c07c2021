"""The grids of diffusers' schedulers: which timesteps of a table, or which points of a flow, a run visits there.

A scheduler differs from the grids of `clock` and `ratio` in small things that a picture shows: whether timesteps are whole,
which end is left out, how sigma lies between two entries of the table, whether the network receives the rounded timestep of a
level between two, and where the run ends. Each of those is an option here, so that a config is followed to rounding.

sigma stands for sigma / alpha throughout. A level's clock t is what the network receives, its alpha and sigma what x holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from samplers.grids.clock import beta_quantile, uniform_time
from samplers.grids.common import Grid, check_positive, check_steps, ramp
from samplers.grids.shift import mu_of
from samplers.path import NoiseLevel, Path, RectifiedFlow, VariancePreserving

SPACINGS = ("linspace", "leading", "trailing", "trained")
SIGMAS = ("table", "log_linear", "karras", "exponential", "beta")
CLOCKS = ("exact", "round", "floor", "unshifted")
FINALS = ("zero", "first", "first_unscaled", "last")
STARTS = ("even", "whole", "trained", "below", "open")
CLOSE = 1e-7  # how much less noise a last level has that repeats the one before it


def timesteps(
    path: Path,
    steps: int,
    spacing: str = "linspace",
    offset: int = 0,
    open_end: bool = False,
    rounded: bool = True,
    original_steps: int = 50,
    clipped: int = 0,
    sigmas: str = "table",
    bounds: str = "table",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    largest: float | None = None,
    clock: str = "exact",
    final: str = "zero",
) -> Grid:
    """Timesteps of a table, as diffusers' schedulers of Stable Diffusion and its kin choose them.

    spacing: "linspace", from the last timestep to 0; "leading", multiples of N // steps from `offset` up; "trailing", from the
    last one down in parts of N / steps; "trained", those of a latent consistency model: every (N / original_steps)-th, of which
    `steps` are kept.
    open_end: linspace and leading make one timestep more and leave out the last (DPM-Solver, UniPC, DEIS).
    rounded: linspace keeps to whole timesteps; one step begins at the last (where diffusers begins at timestep 0).
    clipped: this many of the noisiest timesteps are left out.
    sigmas: "table", linear between its entries; or in their place, between the `bounds`: "log_linear" (in steps + 1 parts),
    "karras", "exponential", "beta".
    bounds: "table", its first and last sigma; "spaced", those of the first and last timestep. sigma_min, sigma_max: instead.
    largest: what stands for an infinite sigma.
    clock: of levels between two timesteps: "exact", or the network receives the whole timestep by "round" or "floor".
    final: "zero", clean data; "first", the table's first entry; "first_unscaled", that with alpha = 1, as it is where x is kept
    unscaled; "last", the last level once more.

    Source: diffusers' `set_timesteps` of the schedulers in `gen.models.bridge.schedulers`. ValueError for unknown names.
    """
    check_steps(steps)
    for name, value, known in (("spacing", spacing, SPACINGS), ("sigmas", sigmas, SIGMAS), ("clock", clock, CLOCKS),
                               ("final", final, FINALS), ("bounds", bounds, ("table", "spaced"))):  # fmt: skip
        _check_name(name, value, known)
    if not isinstance(path, VariancePreserving):
        raise ValueError(f"{type(path).__name__} has no table of timesteps: use the grid scheduler_flow or uniform.")
    ratios = [min(math.exp(-v), math.inf if largest is None else largest) for v in path.table]
    index = _timesteps(len(ratios), steps, spacing, offset, open_end, rounded, original_steps, clipped)
    if sigmas == "table":
        levels = [_level(path, _between(ratios, n), n) for n in index]
    else:
        ends = (_between(ratios, index[0]), _between(ratios, index[-1])) if bounds == "spaced" else (ratios[-1], ratios[0])
        high, low = sigma_max or ends[0], sigma_min or ends[1]
        if sigmas == "log_linear":  # the network receives the timesteps of the spacing
            made = _converted("exponential", ratios[-1], ratios[0], steps + 1)[:-1]
            levels = [_level(path, r, n) for r, n in zip(made, index, strict=True)]
        else:
            roundings: dict[str, Callable[[float], float]] = {"exact": float, "round": round, "floor": _cut}
            rounding = roundings[clock]
            made = _converted(sigmas, high, low, steps)
            levels = [_level(path, r, rounding(_timestep_of(ratios, r))) for r in made]
    return _finish(levels, _final(path, levels[-1], ratios[0], final))


def trained(path: Path, steps: int, original_steps: int = 50, shift: float = 1.0) -> Grid:
    """The timesteps of latent consistency models: every (N / original_steps)-th of a table, of which `steps` are kept evenly
    from the noisiest down, 999, 759, 499, 259 for four (arXiv 2310.04378, section 4.3). On a path without a table, which has
    none of its own, the clock in equal parts with a `shift` as of `uniform_time`."""
    if isinstance(path, VariancePreserving):
        if shift != 1:
            raise ValueError("A table's trained timesteps are not shifted: leave shift out.")
        return timesteps(path, steps, "trained", original_steps=original_steps)
    return uniform_time(path, steps, shift=shift)


def flow(
    path: Path,
    steps: int,
    start: str = "trained",
    shift: float = 1.0,
    time_shift: str = "none",
    tokens: int = 4096,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    terminal: float | None = None,
    mu: str = "line",
    sigmas: str = "table",
    size: int = 1000,
    clock: str = "exact",
    final: str = "zero",
    final_sigma: float = 0.0,
) -> Grid:
    """Points of a rectified flow, as diffusers' flow schedulers choose them.

    start: "even", 1 to 1 / steps; "whole", 1 to 1 / size, rounded down to whole numbers of `size` (CogView4); "trained", the
    first to the last of `size` shifted timesteps, both included, which are then shifted once more (FlowMatchEuler and Heun in
    SD3); "below", from 1 - 1 / size down to 0, which is left out (DPM-Solver, DEIS); "open", from 1 down to 1 / size, which is
    left out (UniPC).
    shift: t -> shift t / (1 + (shift - 1) t). time_shift: "exponential" or "linear", a shift of exp(mu) or mu in its place.
    mu: "line", linear in the number of image tokens (`samplers.grids.dynamic_mu`), "root" (`root_mu`) or "empirical"
    (`empirical_mu`). terminal:
    the clock is stretched so that the last level before clean data is this one.
    sigmas: "karras", "exponential" or "beta" between the first and last of those points, in their place.
    clock: "floor": the network receives whole timesteps of `size`; "unshifted": the points before they were shifted.
    final: "zero", clean data; "last", the last level once more; "sigma", the level of `final_sigma`.

    Source: diffusers' `set_timesteps` of the schedulers in `gen.models.bridge.schedulers`. ValueError for unknown names.
    """
    check_steps(steps)
    for name, value, known in (("start", start, STARTS), ("time_shift", time_shift, ("none", "exponential", "linear")),
                               ("sigmas", sigmas, SIGMAS), ("clock", clock, CLOCKS),
                               ("final", final, ("zero", "last", "sigma"))):  # fmt: skip
        _check_name(name, value, known)
    if not isinstance(path, RectifiedFlow):
        raise ValueError(f"The grid scheduler_flow is for rectified flow, not {type(path).__name__}.")
    check_positive("shift", shift)
    factor = shift
    if time_shift != "none":
        shift_of_tokens = mu_of(mu, tokens, steps, (base_tokens, max_tokens, base_shift, max_shift))
        factor = math.exp(shift_of_tokens) if time_shift == "exponential" else shift_of_tokens
        check_positive("the shift by tokens", factor)

    def shifted(t: float) -> float:
        return factor * t / (1 + (factor - 1) * t)

    if start == "even":
        points = [1 - i / steps for i in range(steps)]
    elif start == "whole":
        stride = (1 - size) / max(steps - 1, 1)
        points = [math.floor(i * stride + size) / size for i in range(steps - 1)] + [1 / size if steps > 1 else 1.0]
    elif start == "trained":
        last = 1 / size if time_shift != "none" else shifted(1 / size)
        points = [1 + u * (last - 1) for u in ramp(steps)]
    else:
        first = 1 - 1 / size if start == "below" else 1.0
        points = [first - i * (1 - 1 / size) / steps for i in range(steps)]
    clocks = points
    points = [shifted(t) for t in points]
    if terminal:
        if not 0 < terminal < 1 or steps == 1:
            raise ValueError(f"A terminal of {terminal} with {steps} step(s): give 0 < terminal < 1 and at least 2 steps.")
        scale = (1 - points[-1]) / (1 - terminal)
        points = [1 - (1 - t) / scale for t in points]
    if sigmas != "table":
        points = _converted(sigmas, points[0], points[-1], steps)
    if start == "open" and points[0] > 1 - 1e-6:
        points[0] -= 1e-6  # UniPC's, which takes no pure noise
    if clock != "unshifted":
        clocks = [math.floor(t * size) / size if clock == "floor" else t for t in points]
    levels = [NoiseLevel(time, 1 - t, t) for time, t in zip(clocks, points, strict=True)]
    end = path(0.0)
    if final == "last":
        end = path(points[-1] * (1 - CLOSE))
    elif final == "sigma":
        end = path(min(final_sigma, points[-1] * (1 - CLOSE)))
    return _finish(levels, end)


def _check_name(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"Unknown {what} {value!r}: choose one of {', '.join(known)}.")


def _timesteps(
    size: int, steps: int, spacing: str, offset: int, open_end: bool, rounded: bool, original_steps: int, clipped: int
) -> list[float]:
    """0-based timesteps, noisiest first."""
    whole = round if rounded else float
    top = size - clipped
    if spacing == "trained":
        if not 1 <= steps <= original_steps <= size:
            raise ValueError(f"{steps} steps of {original_steps} trained ones on a table of {size}: take fewer steps.")
        trained = [(i + 1) * (size // original_steps) - 1 for i in range(original_steps)][::-1]
        return [trained[math.floor(i * (original_steps / steps))] for i in range(steps)]
    if steps > top:
        raise ValueError(f"A table of {size} timesteps cannot give {steps} distinct ones: ask for at most {top} steps.")
    if spacing == "trailing":
        return [round(top - i * (size / steps)) - 1 for i in range(steps)]
    if spacing == "leading":
        parts = steps + open_end
        stride = top // parts
        last = offset + (parts - 1) * stride
        if stride < 1 or not 0 <= last < size:
            raise ValueError(f"{size} timesteps cannot give {steps} from number {offset} up: ask for fewer steps.")
        return [last - i * stride for i in range(steps)]
    parts = steps if open_end else max(steps - 1, 1)
    return [whole((parts - i) * ((top - 1) / parts)) if i else float(top - 1) for i in range(steps)]


def _between(ratios: Sequence[float], n: float) -> float:
    """Sigma at a timestep, linear between the entries."""
    low = min(int(n), len(ratios) - 1)
    if low == n:
        return ratios[low]
    return ratios[low] + (n - low) * (ratios[low + 1] - ratios[low])


def _timestep_of(ratios: Sequence[float], ratio: float) -> float:
    """The timestep of a sigma, linear in its log between the entries, within the table."""
    if ratio <= ratios[0]:
        return 0.0
    if ratio >= ratios[-1]:
        return len(ratios) - 1.0
    high = next(i for i, r in enumerate(ratios) if r >= ratio)
    low, at = math.log(ratios[high - 1]), math.log(ratio)
    return high - 1 + (at - low) / (math.log(ratios[high]) - low)


def _cut(n: float) -> float:
    """The whole timestep below; also of one that is whole but for rounding, as diffusers' single precision makes it."""
    return max(math.floor(n - 1e-4), 0)


def _converted(kind: str, high: float, low: float, count: int) -> list[float]:
    """`count` sigmas from high to low."""
    if kind == "karras":
        a, b = high ** (1 / 7), low ** (1 / 7)
        return [(a + u * (b - a)) ** 7 for u in ramp(count)]
    if kind == "beta":
        return [low + beta_quantile(1 - u, 0.6, 0.6) * (high - low) for u in ramp(count)]
    return [math.exp(math.log(high) + u * (math.log(low) - math.log(high))) for u in ramp(count)]


def _level(path: VariancePreserving, ratio: float, n: float) -> NoiseLevel:
    if math.isinf(ratio):
        return path.discrete(n)
    norm = math.hypot(1.0, ratio)
    return NoiseLevel((n + 1) / len(path.table), 1 / norm, ratio / norm)


def _final(path: VariancePreserving, last: NoiseLevel, first_ratio: float, final: str) -> NoiseLevel:
    """Where a run ends. A last step of no length becomes one that takes away the 1e-7th part of the noise."""
    if final == "zero":
        return path(0.0)
    reached = last.sigma / last.alpha
    ratio = reached * (1 - CLOSE) if final == "last" else min(first_ratio, reached * (1 - CLOSE))
    if final == "first_unscaled":
        return NoiseLevel(1 / len(path.table), 1.0, ratio)
    return _level(path, ratio, 0 if final == "first" else len(path.table) * last.t - 1)


def _finish(levels: Sequence[NoiseLevel], end: NoiseLevel) -> Grid:
    grid = (*levels, end)
    for a, b in pairwise(grid):
        if not a.logsnr < b.logsnr:
            raise ValueError(
                f"The grid does not fall in noise: log-SNR {a.logsnr:.6g} is followed by {b.logsnr:.6g}. Use fewer steps."
            )
    return grid
