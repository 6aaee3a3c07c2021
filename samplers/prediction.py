"""One network output, read in every way.

A network predicts some raw = a x0 + b eps, its `row` (a, b). Together with x = alpha x0 + sigma eps that is a 2x2 system,
so x0, eps, v and flow are each one linear read of (x, raw), with no detour through one another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from samplers.path import NoiseLevel, Path, Scalar, expand

Row = tuple[Scalar, Scalar]


def _edm_row(level: NoiseLevel, path: Path, sigma_data: float) -> Row:
    """EDM's F: x0 = c_skip x + c_out F (arXiv 2206.00364, Table 1), on x = x0 + sigma eps."""
    total = level.sigma**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / total, level.sigma * sigma_data / total**0.5
    return (1 - c_skip * level.alpha) / c_out, -c_skip * level.sigma / c_out


ROWS: dict[str, Callable[[NoiseLevel, Path, float], Row]] = {
    "eps": lambda level, path, sigma_data: (0.0, 1.0),
    "x0": lambda level, path, sigma_data: (1.0, 0.0),
    "v": lambda level, path, sigma_data: (-level.sigma, level.alpha),
    "flow": lambda level, path, sigma_data: path.rate(level),
    "edm": _edm_row,
}


def prediction_row(kind: str, level: NoiseLevel, path: Path, sigma_data: float = 0.5) -> Row:
    """The (a, b) of raw = a x0 + b eps for a prediction kind: eps, x0, v, flow (dx/dt) or edm (F, with its sigma_data)."""
    if kind not in ROWS:
        raise ValueError(f"Unknown prediction {kind!r}: choose one of {', '.join(ROWS)}.")
    return ROWS[kind](level, path, sigma_data)


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about x at a level: raw = row[0] x0 + row[1] eps.

    x, raw and every reading are (B, ...) alike; levels may be floats or (B,). `variance` carries a learned-variance output
    along untouched. A reading that the raw output does not determine (x0 from eps at pure noise) comes out non-finite.
    """

    x: Tensor
    level: NoiseLevel
    raw: Tensor
    row: Row
    variance: Tensor | None = None

    def _read(self, p: Scalar, q: Scalar) -> Tensor:
        """p x0 + q eps, by Cramer's rule on the two rows (alpha, sigma) and (a, b)."""
        (a, b), alpha, sigma = self.row, self.level.alpha, self.level.sigma
        det = alpha * b - sigma * a
        on_x, on_raw = p * b - q * a, q * alpha - p * sigma
        if not any(isinstance(v, Tensor) for v in (det, on_x, on_raw)):
            if det == 0:
                return self.raw * float("nan")
            on_x, on_raw = on_x / det, on_raw / det
            if on_x == 0:
                return self.raw if on_raw == 1 else on_raw * self.raw
            return on_x * self.x + on_raw * self.raw
        return expand(on_x / det, self.x) * self.x + expand(on_raw / det, self.x) * self.raw

    @cached_property
    def x0(self) -> Tensor:
        """The clean image."""
        return self._read(1.0, 0.0)

    @cached_property
    def eps(self) -> Tensor:
        """The unit-variance noise."""
        return self._read(0.0, 1.0)

    @cached_property
    def v(self) -> Tensor:
        """alpha eps - sigma x0 (arXiv 2202.00512)."""
        return self._read(-self.level.sigma, self.level.alpha)

    @cached_property
    def score(self) -> Tensor:
        """grad log p(x) = -eps / sigma."""
        return -self.eps / expand(self.level.sigma, self.x)

    def flow(self, path: Path) -> Tensor:
        """dx/dt along the probability-flow ODE on the path's own clock: alpha' x0 + sigma' eps."""
        return self._read(*path.rate(self.level))

    def read(self, row: Row) -> Tensor:
        """The raw output that a network with this row would have given: row[0] x0 + row[1] eps."""
        return self.raw if row is self.row else self._read(*row)

    def with_raw(self, raw: Tensor) -> Prediction:
        """The same reading rule on another raw output: for linear operations."""
        return replace(self, raw=raw)

    def with_x0(self, x0: Tensor) -> Prediction:
        """A prediction that says x0: for operations that act on the clean image."""
        return replace(self, raw=x0, row=(1.0, 0.0))


@dataclass(frozen=True)
class Guided(Prediction):
    """A guided prediction that remembers what it was made of: `cond`, which guidance strengthens, and `null`, which it leads
    away from; None for what was not evaluated.

    Rules on top of guidance (rescale, perturbed attention, CFG++) read them; whatever changes raw or x0 keeps them.
    """

    cond: Prediction | None = None
    null: Prediction | None = None
