"""Noise paths: how much signal and noise a point of the process holds.

Every path writes its points as x_t = alpha(t) x0 + sigma(t) eps with eps ~ N(0, I). A clock `t` runs from 0 (clean data)
to `t_noise` (the noisiest level). Solvers work in logsnr = log(alpha / sigma), which all paths share: "half log-SNR", the
lambda of DPM-Solver (arXiv 2206.00927). A path therefore only decides where a level sits on its own clock.

Scalars are Python floats (float64) while sampling, so no device is ever synchronised, and tensors of shape (B,) while
training, where each sample has its own level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    Scalar: TypeAlias = Any  # a union would make the type checker ask, at every product, which of the two it is
else:
    Scalar = float | Tensor


WITHOUT_FLOAT64 = {"mps"}  # types of devices


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def lift(function: Callable[[Tensor], Tensor], value: Scalar) -> Scalar:
    """Apply a torch function to a float (in float64, returning a float) or to a tensor."""
    if isinstance(value, Tensor):
        return function(value)
    return function(torch.tensor(value, dtype=torch.float64)).item()


def check_falling(s: NoiseLevel, t: NoiseLevel) -> None:
    """ValueError unless a step from s to t, levels of floats, takes noise away."""
    if not t.logsnr > s.logsnr:
        raise ValueError(f"Cannot step from logsnr {s.logsnr} to {t.logsnr}: levels must fall in noise.")


def expand(scalar: Scalar, like: Tensor) -> Scalar:
    """Shape a (B,) scalar to broadcast over `like` (B, ...); floats pass through."""
    if not isinstance(scalar, Tensor) or scalar.ndim == 0:
        return scalar
    return scalar.to(like).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class NoiseLevel:
    """A point of a path: x_t = alpha x0 + sigma eps at clock t. alpha = 0 is pure noise, sigma = 0 clean data."""

    t: Scalar
    alpha: Scalar
    sigma: Scalar

    @cached_property
    def logsnr(self) -> Scalar:
        """log(alpha / sigma): -inf for pure noise, +inf for clean data."""
        if isinstance(self.alpha, Tensor) or isinstance(self.sigma, Tensor):
            alpha, sigma = torch.as_tensor(self.alpha), torch.as_tensor(self.sigma)
            return alpha.log() - sigma.log()
        if self.sigma == 0:
            return math.inf
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha) - math.log(self.sigma)

    def mix(self, x0: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps."""
        return expand(self.alpha, x0) * x0 + expand(self.sigma, x0) * eps


@runtime_checkable
class Path(Protocol):
    """`path(t)` is the level at clock t; `t_noise` is the clock of the noisiest level, 0 that of clean data."""

    @property
    def t_noise(self) -> float: ...

    def __call__(self, t: Scalar) -> NoiseLevel: ...

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        """The level whose log(alpha / sigma) is `value`."""
        ...

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        """(d alpha / dt, d sigma / dt) at a level."""
        ...


@dataclass(frozen=True)
class VarianceExploding:
    """x = x0 + sigma eps with the clock t = sigma: the EDM path (arXiv 2206.00364)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(
                f"VarianceExploding got sigma_min={self.sigma_min} and sigma_max={self.sigma_max}; "
                "give finite values with 0 <= sigma_min < sigma_max."
            )

    @property
    def t_noise(self) -> float:
        return self.sigma_max

    def __call__(self, t: Scalar) -> NoiseLevel:
        return NoiseLevel(t, lift(torch.ones_like, t), t)

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        return self(lift(lambda v: (-v).exp(), value))

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return lift(torch.zeros_like, level.t), lift(torch.ones_like, level.t)


@dataclass(frozen=True)
class RectifiedFlow:
    """x = (1 - t) x0 + t eps: straight lines from data to noise (arXiv 2209.03003). A shift belongs to the grid."""

    @property
    def t_noise(self) -> float:
        return 1.0

    def __call__(self, t: Scalar) -> NoiseLevel:
        return NoiseLevel(t, 1 - t, t)

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        sigma = lift(lambda v: torch.sigmoid(-v), value)
        return NoiseLevel(sigma, lift(torch.sigmoid, value), sigma)

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        ones = lift(torch.ones_like, level.t)
        return -ones, ones


@dataclass(frozen=True)
class Trigonometric:
    """x = cos(t) x0 + sin(t) eps for t from 0 to pi / 2: TrigFlow, the path of sCM (arXiv 2410.11081, section 3).

    The papers' noise has the data's standard deviation sigma_d; here it is 1, so x is their x_t / sigma_d. Log-SNR is
    -log tan(t), and v = dx/dt is the flow.
    """

    @property
    def t_noise(self) -> float:
        return math.pi / 2

    def __call__(self, t: Scalar) -> NoiseLevel:
        # the complement of t rather than its cosine: exactly 0 at pi / 2
        return NoiseLevel(t, lift(torch.sin, math.pi / 2 - t), lift(torch.sin, t))

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        alpha, sigma = _preserving(value)
        return NoiseLevel(
            lift(lambda v: torch.atan2(torch.sigmoid(-2 * v).sqrt(), torch.sigmoid(2 * v).sqrt()), value), alpha, sigma
        )

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        return -level.sigma, level.alpha


@dataclass(frozen=True)
class VariancePreservingSDE:
    """alpha^2 + sigma^2 = 1 in continuous time, with the noise rate beta(t) = beta_min + t (beta_max - beta_min).

    log alpha = -beta_min t / 2 - (beta_max - beta_min) t^2 / 4 for t from 0 to 1: the VP SDE of arXiv 2011.13456, equation 33.
    d sigma / dt is infinite at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"VariancePreservingSDE got beta_min={self.beta_min} and beta_max={self.beta_max}; "
                "give finite rates with 0 < beta_min <= beta_max."
            )

    @property
    def t_noise(self) -> float:
        return 1.0

    def _log_alpha(self, t: Scalar) -> Scalar:
        return -0.5 * self.beta_min * t - 0.25 * (self.beta_max - self.beta_min) * t**2

    def __call__(self, t: Scalar) -> NoiseLevel:
        return NoiseLevel(
            t,
            lift(lambda u: self._log_alpha(u).exp(), t),
            lift(lambda u: (-(2 * self._log_alpha(u)).expm1()).sqrt(), t),  # no cancellation at small t
        )

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        def clock(v: Tensor) -> Tensor:
            log_alpha = 0.5 * torch.nn.functional.logsigmoid(2 * v)
            root = (0.25 * self.beta_min**2 - (self.beta_max - self.beta_min) * log_alpha).sqrt()
            return -2 * log_alpha / (0.5 * self.beta_min + root)  # the quadratic's root without a difference

        alpha, sigma = _preserving(value)
        return NoiseLevel(lift(clock, value), alpha, sigma)

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        d_alpha = -0.5 * (self.beta_min + level.t * (self.beta_max - self.beta_min)) * level.alpha
        if not isinstance(level.sigma, Tensor) and level.sigma == 0:
            return d_alpha, math.inf
        return d_alpha, -level.alpha / level.sigma * d_alpha


@dataclass(frozen=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1, given by its log-SNR at t = 1/N, 2/N, ..., 1: the table of a discrete-time model.

    Discrete timestep n (0-based) of the model is t = (n + 1) / N. Between entries log-SNR is linear in t, so that table
    entries are exact. Below the first entry sigma falls linearly to 0 at t = 0, and above the last finite one alpha falls
    linearly to its final value, which is 0 for a zero-terminal-SNR table.
    """

    table: tuple[float, ...]  # logsnr, strictly falling; only the last entry may be -inf

    def __post_init__(self) -> None:
        finite = self.table[:-1] if self.table and self.table[-1] == -math.inf else self.table
        falling = all(a > b for a, b in pairwise(self.table))
        if len(finite) < 2 or not falling or not all(map(math.isfinite, finite)):
            raise ValueError(
                f"VariancePreserving got a table of {len(self.table)} log-SNR values that does not fall strictly "
                "through at least two finite values; give log(alpha/sigma) from the cleanest step to the noisiest."
            )

    @classmethod
    def from_alphas_cumprod(cls, values: Tensor) -> VariancePreserving:
        """From a model's alpha-bar table (N,): alpha^2, falling; a last 0 means zero terminal SNR."""
        values = torch.as_tensor(values, dtype=torch.float64)
        return cls(tuple((0.5 * (values.log() - (-values).log1p())).tolist()))

    @classmethod
    def from_betas(cls, betas: Tensor, zero_terminal_snr: bool = False) -> VariancePreserving:
        """From a DDPM beta table (N,); `zero_terminal_snr` rescales it so that the last alpha is 0 (arXiv 2305.08891)."""
        alphas = (-torch.as_tensor(betas, dtype=torch.float64)).log1p().cumsum(0).exp()
        if zero_terminal_snr:
            root = alphas.sqrt()
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))  # keeps the first entry, zeroes the last
            alphas = root**2
        return cls.from_alphas_cumprod(alphas)

    @classmethod
    def linear(cls, start=1e-4, end=0.02, steps=1000, zero_terminal_snr=False) -> VariancePreserving:
        """Betas linear in n: DDPM, DiT, PixArt (1e-4 to 0.02)."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64), zero_terminal_snr)

    @classmethod
    def scaled_linear(cls, start=0.00085, end=0.012, steps=1000, zero_terminal_snr=False) -> VariancePreserving:
        """Square roots of the betas linear in n: Stable Diffusion, U-ViT (0.00085 to 0.012)."""
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        return cls.from_betas(betas, zero_terminal_snr)

    @classmethod
    def cosine(cls, steps=1000, offset=0.008, max_beta=0.999) -> VariancePreserving:
        """alpha-bar = cos^2 with betas capped (arXiv 2102.09672, equation 17)."""
        t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        bar = torch.cos((t + offset) / (1 + offset) * torch.pi / 2) ** 2
        return cls.from_betas((1 - bar[1:] / bar[:-1]).clamp(max=max_beta))

    @classmethod
    def sigmoid(cls, start=1e-4, end=0.02, steps=1000, zero_terminal_snr=False) -> VariancePreserving:
        """Betas along a sigmoid from -6 to 6: GeoDiff, and diffusers' "sigmoid"."""
        betas = torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start
        return cls.from_betas(betas, zero_terminal_snr)

    @property
    def t_noise(self) -> float:
        return 1.0

    def discrete(self, n: Scalar) -> NoiseLevel:
        """The level of the model's own 0-based timestep n."""
        return self((n + 1) / len(self.table))

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """(clock, logsnr) of the finite table entries, both (M,) float64, clock rising."""
        logsnr = torch.tensor([v for v in self.table if math.isfinite(v)], dtype=torch.float64)
        return torch.arange(1, len(logsnr) + 1, dtype=torch.float64) / len(self.table), logsnr

    def _knots_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`_knots` on a device, copied there once, in its widest dtype."""
        if device not in self._copies:
            clock, logsnr = self._knots
            wide = wide_dtype(device)
            self._copies[device] = (clock.to(wide).to(device), logsnr.to(wide).to(device))
        return self._copies[device]

    @cached_property
    def _copies(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    @cached_property
    def _ends(self) -> tuple[float, float, float, float]:
        """(first clock, its sigma, last finite clock, its alpha)."""
        clock, logsnr = self._knots
        sigma, alpha = torch.sigmoid(-2 * logsnr[0]).sqrt(), torch.sigmoid(2 * logsnr[-1]).sqrt()
        return clock[0].item(), sigma.item(), clock[-1].item(), alpha.item()

    def __call__(self, t: Scalar) -> NoiseLevel:
        if not isinstance(t, Tensor):
            level = self(torch.tensor(t, dtype=torch.float64))
            return NoiseLevel(t, level.alpha.item(), level.sigma.item())
        clock, table = self._knots_on(t.device)
        first, sigma_first, last, alpha_last = self._ends
        u = t.to(clock.dtype)
        logsnr = _interpolate(u, clock, table)
        alpha, sigma = torch.sigmoid(2 * logsnr).sqrt(), torch.sigmoid(-2 * logsnr).sqrt()
        near = u < first
        sigma = torch.where(near, sigma_first * u.clamp(min=0) / first, sigma)
        alpha = torch.where(near, (1 - sigma**2).sqrt(), alpha)
        if last < 1:
            far = u > last
            alpha = torch.where(far, alpha_last * (1 - u).clamp(min=0) / (1 - last), alpha)
            sigma = torch.where(far, (1 - alpha**2).sqrt(), sigma)
        return NoiseLevel(t, alpha.to(t), sigma.to(t))

    def at_logsnr(self, value: Scalar) -> NoiseLevel:
        if not isinstance(value, Tensor):
            level = self.at_logsnr(torch.tensor(value, dtype=torch.float64))
            return NoiseLevel(level.t.item(), level.alpha.item(), level.sigma.item())
        clock, table = self._knots_on(value.device)
        first, sigma_first, last, alpha_last = self._ends
        v = value.to(clock.dtype)
        alpha, sigma = torch.sigmoid(2 * v).sqrt(), torch.sigmoid(-2 * v).sqrt()
        t = _interpolate(-v, -table, clock)
        t = torch.where(v > table[0], first * sigma / sigma_first, t)
        if last < 1:
            t = torch.where(v < table[-1], 1 - (1 - last) * alpha / alpha_last, t)
        return NoiseLevel(t.to(value), alpha.to(value), sigma.to(value))

    def rate(self, level: NoiseLevel) -> tuple[Scalar, Scalar]:
        if not isinstance(level.t, Tensor):
            as_tensor = NoiseLevel(*(torch.tensor(v, dtype=torch.float64) for v in (level.t, level.alpha, level.sigma)))
            d_alpha, d_sigma = self.rate(as_tensor)
            return d_alpha.item(), d_sigma.item()
        clock, table = self._knots_on(level.t.device)
        first, sigma_first, last, alpha_last = self._ends
        t, alpha, sigma = (v.to(clock.dtype) for v in (level.t, level.alpha, level.sigma))
        index = torch.searchsorted(clock, t.contiguous()).clamp(1, len(clock) - 1)
        slope = (table[index] - table[index - 1]) / (clock[index] - clock[index - 1])
        d_alpha, d_sigma = alpha * sigma**2 * slope, -sigma * alpha**2 * slope  # from alpha^2 = sigmoid(2 logsnr)
        near = t < first
        d_sigma = torch.where(near, torch.full_like(t, sigma_first / first), d_sigma)
        d_alpha = torch.where(near, -sigma / alpha * d_sigma, d_alpha)
        if last < 1:
            far = t > last
            d_alpha = torch.where(far, torch.full_like(t, -alpha_last / (1 - last)), d_alpha)
            d_sigma = torch.where(far, -alpha / sigma * d_alpha, d_sigma)
        return d_alpha.to(level.t), d_sigma.to(level.t)


def _preserving(logsnr: Scalar) -> tuple[Scalar, Scalar]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
    return lift(lambda v: torch.sigmoid(2 * v).sqrt(), logsnr), lift(lambda v: torch.sigmoid(-2 * v).sqrt(), logsnr)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through the knots (xs rising), extended beyond both ends."""
    index = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[index - 1], xs[index], ys[index - 1], ys[index]
    return torch.lerp(y0, y1, (x - x0) / (x1 - x0))
