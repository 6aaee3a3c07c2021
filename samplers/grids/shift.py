"""Resolution shifts: larger images hold more signal at the same noise level, so they need more of it.

A shift multiplies sigma / alpha by a factor, whatever the path; on rectified flow that is t -> s t / (1 + (s - 1) t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from samplers.grids.clock import uniform_time
from samplers.grids.common import Grid, check_positive, check_steps, finish
from samplers.path import NoiseLevel, Path, RectifiedFlow


def resolution_shift(pixels: float, base_pixels: float) -> float:
    """sqrt(m / n): the shift for images of m pixels (or tokens) where a grid is meant for n (arXiv 2403.03206, equation 23)."""
    check_positive("pixels", pixels)
    check_positive("base_pixels", base_pixels)
    return math.sqrt(pixels / base_pixels)


def dynamic_mu(
    tokens: int, base_tokens: int = 256, max_tokens: int = 4096, base_shift: float = 0.5, max_shift: float = 1.15
) -> float:
    """Flux's mu, linear in the number of image tokens; the shift is exp(mu)."""
    check_positive("tokens", tokens)
    if not base_tokens < max_tokens:
        raise ValueError(f"The line needs two points with base_tokens < max_tokens, got {base_tokens} and {max_tokens}.")
    return base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)


def empirical_mu(tokens: int, steps: int) -> float:
    """FLUX.2's mu, fitted for the number of image tokens and of steps; the shift is exp(mu).

    Linear in the tokens at 10 and at 200 steps, linear in the steps between; above 4300 tokens, that of 200 steps.

    Source: `compute_empirical_mu` of the FLUX.2 release.
    """
    check_positive("tokens", tokens)
    check_steps(steps)
    many = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    few = 8.73809524e-05 * tokens + 1.89833333
    return few + (many - few) * (steps - 10) / 190


def root_mu(tokens: int, base_tokens: int = 256, base_shift: float = 0.25, max_shift: float = 0.75) -> float:
    """CogView4's mu, linear in the side of the picture."""
    check_positive("tokens", tokens)
    check_positive("base_tokens", base_tokens)
    return base_shift + max_shift * math.sqrt(tokens / base_tokens)


def mu_of(rule: str, tokens: int, steps: int, line: tuple[int, int, float, float]) -> float:
    """mu by the name of its rule: "line" through two points of tokens and mu, "root" of the tokens, or "empirical". ValueError
    for other names."""
    if rule not in ("line", "root", "empirical"):
        raise ValueError(f"Unknown mu {rule!r}: choose line, root or empirical.")
    if rule == "root":
        base_tokens, _, base_shift, max_shift = line
        return root_mu(tokens, base_tokens, base_shift, max_shift)
    return empirical_mu(tokens, steps) if rule == "empirical" else dynamic_mu(tokens, *line)


def dynamic_shift(
    path: Path,
    steps: int,
    tokens: int = 4096,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    terminal: float | None = None,
    mu: str = "line",
) -> Grid:
    """Rectified flow's even clock, shifted by exp(mu) for the number of image tokens: the grid of Flux and SD3.

    t -> exp(mu) / (exp(mu) + 1 / t - 1). terminal: stretch the clock so that the last level before clean data is this one
    (0.1 in LTX-Video). A 1024 x 1024 Flux image has 4096 tokens. mu: "line", `dynamic_mu`, "root",
    `root_mu`, or "empirical", `empirical_mu`.
    """
    check_steps(steps)
    if not isinstance(path, RectifiedFlow):
        raise ValueError(f"A shift by tokens is defined on rectified flow, not on {type(path).__name__}: use `shifted`.")
    line = (base_tokens, max_tokens, base_shift, max_shift)
    levels = uniform_time(path, steps, shift=math.exp(mu_of(mu, tokens, steps, line)))
    if terminal is None:
        return levels
    if not 0 < terminal < 1 or steps == 1:
        raise ValueError(f"A terminal of {terminal} with {steps} step(s): give 0 < terminal < 1 and at least 2 steps.")
    scale = (1 - terminal) / (1 - levels[-2].t)
    return finish(path, [path(1 - (1 - level.t) * scale) for level in levels[:-1]])


def shifted(path: Path, levels: Sequence[NoiseLevel], shift: float) -> Grid:
    """A grid with sigma / alpha multiplied by `shift` throughout; pure noise and clean data stay what they are."""
    check_positive("shift", shift)
    lift = math.log(shift)
    return finish(path, [v if math.isinf(v.logsnr) else path.at_logsnr(v.logsnr - lift) for v in levels[:-1]])
