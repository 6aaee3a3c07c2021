"""The two forms of scaling laws, and fits of them. All in float64.

A power law y = a x^b, of computing, size or data each on its own: the form of "On the Scalability of Diffusion-based
Text-to-Image Generation" (arXiv 2404.02883), fitted by least squares to log y over log x on the frontier of the runs.

A saturating law L(N, D) = E + A / N^alpha + B / D^beta of size and data together: "Training Compute-Optimal Large Language
Models" (arXiv 2203.15556), section 3.3, fitted by Huber's loss of log L with delta = 1e-3, the best of many starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DELTA = 1e-3  # where Huber's loss turns from squares to distances: 2203.15556
LEVEL = 0.9  # of every interval
EXPONENTS = (1e-2, 5.0)  # the least and largest that a saturating law has
STARTS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)  # of either exponent
EXACT = 1e-9  # errors of log L that are rounding alone
STEPS = 300  # of a descent, at most
FEWEST = 6  # points of a saturating law, which has five numbers


@dataclass(frozen=True)
class PowerLaw:
    """y = a x^b, and the covariance of (log y at the middle x, b)."""

    a: float
    b: float
    middle: float = 0.0  # the mean of log x
    variances: tuple[float, float] = (0.0, 0.0)  # of log y there and of b, which are uncorrelated
    freedom: int = 1  # points less the two numbers

    def __call__(self, x: float) -> float:
        return self.a * x**self.b

    def slopes(self) -> tuple[float, float]:
        """The interval of b: Student's t with the linearised covariance, which is exact for normal, independent errors of
        log y."""
        half = student(self.freedom) * math.sqrt(self.variances[1])
        return self.b - half, self.b + half

    def interval(self, x: float) -> tuple[float, float]:
        """Of the curve at x, by the same covariance."""
        variance = self.variances[0] + (math.log(x) - self.middle) ** 2 * self.variances[1]
        factor = math.exp(student(self.freedom) * math.sqrt(variance))
        return self(x) / factor, self(x) * factor


def fit_power(x: Array, y: Array) -> PowerLaw:
    """Least squares of log y over log x. ValueError for fewer than three points or for one x only."""
    if len(x) < 3 or np.ptp(np.log(x)) == 0:
        raise ValueError("A power law needs three points at different places.")
    u, v = np.log(x), np.log(y)
    middle = float(u.mean())
    spread = float(((u - middle) ** 2).sum())
    b = float(((u - middle) * (v - v.mean())).sum() / spread)
    freedom = len(x) - 2
    noise = float(((v - v.mean() - b * (u - middle)) ** 2).sum()) / freedom
    return PowerLaw(
        math.exp(float(v.mean()) - b * middle), b, middle, variances=(noise / len(x), noise / spread), freedom=freedom
    )


@lru_cache(256)
def student(freedom: int, level: float = LEVEL) -> float:
    """The number of standard errors within which Student's t lies with this probability.

    With t = sqrt(f) tan(theta), the density of theta is cos(theta)^(f - 1), which is integrated.
    """
    angles = np.linspace(0, min(math.pi / 2, 12 / math.sqrt(freedom)), 20_001)  # beyond which there is nothing
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, share / share[-1], angles)))


def frontier(x: Array, y: Array, rises: bool) -> NDArray[np.bool_]:
    """Which points no other beats that costs no more: of all up to their x they are the best."""
    kept = np.zeros(len(x), bool)
    best = -math.inf
    sign = 1.0 if rises else -1.0
    for i in np.lexsort((-sign * y, x)):
        if sign * y[i] > best:
            kept[i], best = True, sign * y[i]
    return kept


@dataclass(frozen=True)
class SaturatingLaw:
    """L(N, D) = floor + of_size / N^alpha + of_data / D^beta."""

    floor: float
    of_size: float
    alpha: float
    of_data: float
    beta: float

    def __call__(self, size: float, samples: float) -> float:
        return self.floor + self.of_size * size**-self.alpha + self.of_data * samples**-self.beta

    def at(self, sizes: Array, samples: Array) -> Array:
        return self.floor + self.of_size * sizes**-self.alpha + self.of_data * samples**-self.beta

    @property
    def at_an_edge(self) -> bool:
        """Is an exponent where the fit may go no further, so that the points do not determine it?"""
        return any(not EXPONENTS[0] * 1.001 < b < EXPONENTS[1] * 0.999 for b in (self.alpha, self.beta))


def fit_saturating(sizes: Array, samples: Array, values: Array, start: SaturatingLaw | None = None) -> SaturatingLaw:
    """The law with the least sum of Huber's losses of log L.

    start: where to begin, in the place of the best of many pairs of exponents, whose other three numbers are linear.
    ValueError for fewer than six points, or fewer than three sizes or amounts of data: E and A would be one number.
    """
    if len(values) < FEWEST or min(len(np.unique(sizes)), len(np.unique(samples))) < 3:
        raise ValueError("A saturating law needs six points, of three sizes and three amounts of data.")
    middles = float(np.log(sizes).mean()), float(np.log(samples).mean())
    u, w, v = np.log(sizes) - middles[0], np.log(samples) - middles[1], np.log(values)
    least = float(v.min()) - 30  # a floor of nothing, as a logarithm
    starts = [_as_numbers(start, middles, least)] if start else _starts(u, w, v)
    tolerance = 1e-5 if start else 1e-10  # a bootstrap wants no more
    found = min((_descend(numbers, u, w, v, least, tolerance) for numbers in starts), key=lambda one: one[1])[0]
    e, a, alpha, b, beta = (float(number) for number in found)
    return SaturatingLaw(math.exp(e), math.exp(a + alpha * middles[0]), alpha, math.exp(b + beta * middles[1]), beta)


def bootstrap(
    law: SaturatingLaw, sizes: Array, samples: Array, values: Array, runs: NDArray[np.int64], count: int = 200, seed: int = 0
) -> list[SaturatingLaw]:
    """Laws of values that could have come as well: the fitted ones times errors drawn from those that were seen.

    An error of log L has a part that all points of its run share, their mean, and a rest. The first are drawn among runs, the
    second among points, with replacement; both are enlarged by what the fit took from them. runs: the number of each point's.
    """
    draw = np.random.default_rng(seed)
    fitted = np.log(law.at(sizes, samples))
    errors = np.log(values) - fitted
    if np.abs(errors).max() < EXACT:
        return [law] * count
    _, place, counts = np.unique(runs, return_inverse=True, return_counts=True)
    shared = np.bincount(place, errors) / counts
    rest = errors - shared[place]
    groups, points = len(counts), len(errors)
    taken = min(5, groups - 1) if points == groups else min(2, groups - 1)  # of the shared part: what concerns sizes
    shared = shared * math.sqrt(groups / (groups - taken))
    rest = rest * math.sqrt(points / max(1, points - 5))
    laws = []
    for _ in range(count):
        drawn = shared[draw.integers(groups, size=groups)][place] + rest[draw.integers(points, size=points)]
        laws.append(fit_saturating(sizes, samples, np.exp(fitted + drawn), start=law))
    return laws


def percentiles(values: list[float]) -> tuple[float, float]:
    """The middle share LEVEL of what a bootstrap gave."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _as_numbers(law: SaturatingLaw, middles: tuple[float, float], least: float) -> Array:
    floor = max(math.log(law.floor), least) if law.floor > 0 else least
    a, b = math.log(law.of_size) - law.alpha * middles[0], math.log(law.of_data) - law.beta * middles[1]
    return np.array([floor, a, law.alpha, b, law.beta])


def _starts(u: Array, w: Array, v: Array, kept: int = 4) -> list[Array]:
    """(log E, log A, alpha, log B, beta) of the best pairs of exponents; E, A and B by least squares of relative errors."""
    found = []
    small = float(np.exp(v).min()) * 1e-4  # for what least squares would have negative
    for alpha in STARTS:
        for beta in STARTS:
            columns = np.stack([np.ones_like(u), np.exp(-alpha * u), np.exp(-beta * w)], 1) * np.exp(-v)[:, None]
            e, a, b = np.log(np.maximum(np.linalg.lstsq(columns, np.ones_like(v), rcond=None)[0], small))
            numbers = np.array([e, a, alpha, b, beta])
            found.append((_huber(_logarithm(numbers, u, w)[0] - v), numbers))
    return [numbers for _, numbers in sorted(found, key=lambda one: one[0])[:kept]]


def _logarithm(numbers: Array, u: Array, w: Array) -> tuple[Array, Array]:
    """(log L, its derivatives by the five numbers), as a log-sum-exp."""
    e, a, alpha, b, beta = numbers
    terms = np.stack([np.full_like(u, e), a - alpha * u, b - beta * w])
    top = terms.max(0)
    parts = np.exp(terms - top)
    total = parts.sum(0)
    parts = parts / total
    return top + np.log(total), np.stack([parts[0], parts[1], -u * parts[1], parts[2], -w * parts[2]], 1)


def _huber(errors: Array) -> float:
    size = np.abs(errors)
    return float(np.where(size <= DELTA, errors**2 / 2, DELTA * (size - DELTA / 2)).sum())


def _descend(numbers: Array, u: Array, w: Array, v: Array, least: float, tolerance: float) -> tuple[Array, float]:
    """Levenberg-Marquardt on squares reweighted as Huber's loss has them: (the numbers, their loss)."""
    low = np.array([least, -np.inf, EXPONENTS[0], -np.inf, EXPONENTS[0]])
    high = np.array([np.inf, np.inf, EXPONENTS[1], np.inf, EXPONENTS[1]])
    numbers = numbers.clip(low, high)
    fitted, slopes = _logarithm(numbers, u, w)
    loss, damping = _huber(fitted - v), 1e-3
    for _ in range(STEPS):
        errors = fitted - v
        weights = np.minimum(1, DELTA / np.maximum(np.abs(errors), DELTA))[:, None]
        hessian, gradient = slopes.T @ (weights * slopes), slopes.T @ (weights[:, 0] * errors)
        damped = hessian + damping * np.diag(np.diag(hessian) + 1e-12)
        try:
            step = np.linalg.solve(damped, -gradient)
        except np.linalg.LinAlgError:
            damping *= 10
            continue
        trial = (numbers + step.clip(-2, 2)).clip(low, high)
        trial_fitted, trial_slopes = _logarithm(trial, u, w)
        trial_loss = _huber(trial_fitted - v)
        if trial_loss < loss:
            done = loss - trial_loss <= tolerance * loss and (tolerance > 1e-9 or np.abs(trial - numbers).max() < 1e-9)
            numbers, fitted, slopes, loss = trial, trial_fitted, trial_slopes, trial_loss
            damping = max(damping / 5, 1e-15)
            if done:
                break
        else:
            damping *= 5
            if damping > 1e8:
                break
    return numbers, loss
