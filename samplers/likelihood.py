"""Exact log-likelihood by the probability-flow ODE (arXiv 2011.13456, section 4.3 and appendix D.2).

Along dx/dl = f(x, l) the density changes by d log p / dl = -div f, so log p at the data is log p of the noise it flows to plus
the integral of div f. The clock l is log-SNR and the coordinates are the variance-preserving ones of every path,
x = alpha x0 + sigma eps with alpha^2 = sigmoid(2 l), where the ODE is

    dx/dl = alpha sigma^2 x0 - sigma alpha^2 eps                                                       (1)

and stays of the size of the data from one end to the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.grids.common import ratio_bounds
from samplers.noise import normal
from samplers.path import NoiseLevel, wide_dtype
from samplers.tableaus import TABLEAUS, Tableau

DIVERGENCES = ("auto", "exact", "rademacher", "gaussian")
_MOST_STEPS = 10_000  # tried by adaptive integration before it gives up
_EXACT_UP_TO = 64  # dimensions whose trace "auto" takes exactly


METHODS = ("euler", "heun", "rk4", "dopri5")


@dataclass(frozen=True)
class LogLikelihood:
    """nats (B,): log p(x). latent (B, ...): the point of the noisiest level that x flows to. evaluations: per image."""

    nats: Tensor
    latent: Tensor
    evaluations: float

    def bits_per_dim(self, bins: int | None = None, width: float = 2.0) -> Tensor:
        """-log2 p(x) per dimension (B,). bins: for data quantised to that many values over `width` (256 over [-1, 1] for
        images), add log2(bins / width), the bits of one dequantised value."""
        per_dim = -self.nats / (self.latent[0].numel() * math.log(2))
        return per_dim if bins is None else per_dim + math.log2(bins / width)


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    condition: Condition | None = None,
    *,
    start: NoiseLevel | None = None,
    end: NoiseLevel | None = None,
    steps: int = 100,
    method: str = "rk4",
    tolerance: float | None = None,
    divergence: str = "auto",
    probes: int = 1,
    seeds: Sequence[int] | None = None,
    data_std: float | None = None,
    context: Context | None = None,
) -> LogLikelihood:
    """log p(x) in nats for x (B, ...) at the level `start`. data_std: take the model at `end` for N(0, sigma^2 + alpha^2
    data_std^2); None takes it for what the denoiser says of it.

    start: clean data by default; the ODE then begins at the path's least noise r = sigma / alpha, and what lies between is
    taken with eps growing evenly from 0: y = x + r / 2 eps(y, r) and log p += r / 2 div eps, in four evaluations. For data
    whose narrowest spread is s the error is about (r / s)^4 / 4 nats a dimension, 0.001 on Stable Diffusion's table (r =
    0.029) at s = 0.12, where leaving it out costs 0.03.
    end: the path's most noise that is finite in log-SNR. With R = sigma / alpha there, and m and s the data's mean and spread,
    the model differs from N(0, R^2) at a point z standard deviations out by about s^2 (1 - z^2) / (2 R^2) and m z / R nats a
    dimension: hundredths on Stable Diffusion's table, R = 14.6. With data_std=None what the denoiser says there corrects it
    (`_prior_gain`), to about (s / R)^4 / 4; with a number the prior is the Gaussian of that data, 0 as in published numbers.
    The integral is taken in log-SNR by
    `steps` equal steps of `method` (euler, heun, rk4, dopri5), or by dopri5 with steps chosen for `tolerance` (absolute and
    relative, the worst of the batch). divergence: "exact" costs one backward pass per dimension; "rademacher" and "gaussian"
    average `probes` of Hutchinson's estimates e^T (df/dx) e, with e a function of the row's seed and kept along the
    trajectory, unbiased; "auto" is exact up to 64 dimensions and rademacher above.
    Raises ValueError for levels that do not rise in noise, unknown names, and an estimate without seeds.
    """
    path, dims = denoiser.path, x[0].numel()
    least, most = ratio_bounds(path)
    first = -math.log(least) if start is None or start.sigma == 0 else start.logsnr
    last = -math.log(most) if end is None else end.logsnr
    if not (math.isfinite(first) and math.isfinite(last) and last < first):
        raise ValueError(f"A likelihood runs from less to more noise, both finite: got log-SNR {first} to {last}.")
    if method not in METHODS:
        raise ValueError(f"Unknown method {method!r}: choose one of {', '.join(METHODS)}.")
    if divergence not in DIVERGENCES:
        raise ValueError(f"Unknown divergence {divergence!r}: choose one of {', '.join(DIVERGENCES)}.")
    if steps < 1 or probes < 1 or not (data_std is None or data_std >= 0):
        raise ValueError(f"Give steps >= 1, probes >= 1 and data_std >= 0 or None, got {steps}, {probes} and {data_std}.")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"The tolerance must be a finite number above 0, got {tolerance}.")
    if divergence == "auto":
        divergence = "exact" if dims <= _EXACT_UP_TO else "rademacher"
    directions = None if divergence == "exact" else _probes(x, seeds, probes, divergence)
    condition, context = condition or Condition(), context or Context()
    before = context.evaluations

    def slope(y: Tensor, l: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = _vp(l)
        level = path.at_logsnr(l)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            p = denoiser(y * (level.alpha / alpha), level, condition, context)
            f = alpha * sigma**2 * p.x0 - sigma * alpha**2 * p.eps  # equation (1)
            return f.detach(), _divergence(f, y, directions)

    alpha = _vp(first)[0]
    scale = alpha / (start.alpha if start is not None else 1.0)  # from the path's coordinates to those of (1)
    y, gained = x.detach() * scale, x.new_zeros(len(x), dtype=wide_dtype(x.device))
    if start is None or start.sigma == 0:
        y, gained = _from_clean(denoiser, x.detach(), path.at_logsnr(first), condition, context, directions)
        y = y * scale
    if tolerance is None:
        y, gained = _fixed(slope, y, gained, first, last, steps, TABLEAUS[method])
    else:
        y, gained = _adaptive(slope, y, gained, first, last, tolerance)

    end_alpha, end_sigma = _vp(last)
    variance = end_sigma**2 + (end_alpha * (data_std or 0.0)) ** 2
    prior = -0.5 * (_wide(y) ** 2 / variance + math.log(2 * math.pi * variance)).flatten(1).sum(1)
    if data_std is None:
        prior = prior + _prior_gain(denoiser, y / end_alpha, path.at_logsnr(last), condition, context, directions)
    nats = prior + gained + dims * math.log(scale)
    back = (path.at_logsnr(last).alpha if end is None else end.alpha) / end_alpha
    return LogLikelihood(nats, y * back, (context.evaluations - before) / len(x))


def _from_clean(
    denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition, context: Context, directions: Sequence | None
) -> tuple[Tensor, Tensor]:
    """(y = x_t / alpha_t, the integral of the divergence) from clean data x to a level of little noise.

    dy/dr = eps(y, r) by the trapezoidal rule, eps being 0 at r = 0. The equation is implicit, and solved by putting its right
    side in three times.
    """
    half = level.sigma / level.alpha / 2
    y = x
    for _ in range(3):
        y = x + half * denoiser(level.alpha * y, level, condition, context).eps.detach()
    with torch.enable_grad():
        y = y.requires_grad_()
        eps = denoiser(level.alpha * y, level, condition, context).eps
        return y.detach(), half * _divergence(eps, y, directions)


def _prior_gain(
    denoiser: Denoiser, y: Tensor, level: NoiseLevel, condition: Condition, context: Context, directions: Sequence | None
) -> Tensor:
    """log p(y) - log N(y; 0, R^2) (B,) at a level of much noise R = sigma / alpha, from the predicted image D, its Jacobian J.

    It is log E exp((2 y x0 - |x0|^2) / (2 R^2)). Given y, the data are about Gaussian with mean D = m + J y and covariance
    R^2 J, which to the second order in 1 / R makes it

        (y D - y J y / 2) / R^2 - (|D - J y|^2 + R^2 tr J) / (2 R^2).
    """
    square = (level.sigma / level.alpha) ** 2
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        image = denoiser(level.alpha * y, level, condition, context).x0
        spread = _divergence(image, y, directions)
        [turned] = torch.autograd.grad(image, y, y.detach(), retain_graph=True)
    at, image, turned = (_wide(v.detach()).flatten(1) for v in (y, image, turned))
    inner = (at * image).sum(1) - (at * turned).sum(1) / 2 - (image - turned).square().sum(1) / 2
    return inner / square - spread / 2


def _vp(logsnr: float) -> tuple[float, float]:
    """(alpha, sigma) with alpha^2 + sigma^2 = 1."""
    return (1 + math.exp(-2 * logsnr)) ** -0.5, (1 + math.exp(2 * logsnr)) ** -0.5


def _probes(x: Tensor, seeds: Sequence[int] | None, count: int, kind: str) -> list[Tensor]:
    if seeds is None or len(seeds) != len(x):
        given = "none" if seeds is None else len(seeds)
        raise ValueError(f"An estimated divergence draws its directions from one seed per image: {given} for {len(x)} images.")
    draws = [normal(seeds, x.shape[1:], "divergence", k, device=x.device, dtype=x.dtype) for k in range(count)]
    return [torch.where(e > 0, 1.0, -1.0).to(e) for e in draws] if kind == "rademacher" else draws


def _divergence(f: Tensor, y: Tensor, directions: Sequence[Tensor] | None) -> Tensor:
    """(B,) float64: the trace of df/dy, exactly where `directions` is None."""
    if directions is None:
        total = y.new_zeros(len(y), dtype=wide_dtype(y.device))
        for k in range(y[0].numel()):
            row = torch.autograd.grad(f.flatten(1)[:, k].sum(), y, retain_graph=True)[0]
            total = total + _wide(row.flatten(1)[:, k])
        return total
    rows = [torch.autograd.grad(f, y, e, retain_graph=True)[0] * e for e in directions]
    return torch.stack([_wide(r).flatten(1).sum(1) for r in rows]).mean(0)


Slope = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def _stages(slope: Slope, y: Tensor, l: float, h: float, tableau: Tableau) -> list[tuple[Tensor, Tensor]]:
    slopes: list[tuple[Tensor, Tensor]] = []
    for row, node in zip(tableau.stages, tableau.nodes, strict=True):
        at = y
        for weight, (f, _) in zip(row, slopes, strict=True):
            at = torch.add(at, f, alpha=h * weight)
        slopes.append(slope(at, l + h * node))
    return slopes


def _add(y: Tensor, gained: Tensor, h: float, weights: Sequence[float], slopes: Sequence) -> tuple[Tensor, Tensor]:
    for weight, (f, trace) in zip(weights, slopes, strict=True):
        y, gained = torch.add(y, f, alpha=h * weight), torch.add(gained, trace, alpha=h * weight)
    return y, gained


def _fixed(slope: Slope, y: Tensor, gained: Tensor, first: float, last: float, steps: int, tableau: Tableau):
    h = (last - first) / steps
    for i in range(steps):
        y, gained = _add(y, gained, h, tableau.weights, _stages(slope, y, first + i * h, h, tableau))
    return y, gained


def _adaptive(slope: Slope, y: Tensor, gained: Tensor, first: float, last: float, tolerance: float):
    """dopri5, its step scaled by 0.9 error^(-1/5) within a factor of 0.2 to 5."""
    tableau, l, h = TABLEAUS["dopri5"], first, (last - first) / 20
    for _ in range(_MOST_STEPS):
        if l <= last:
            return y, gained
        h = max(h, last - l)  # both are negative
        slopes = _stages(slope, y, l, h, tableau)
        new_y, new_gained = _add(y, gained, h, tableau.weights, slopes)
        off_y, off_gained = _add(torch.zeros_like(y), torch.zeros_like(gained), h, tableau.error or (), slopes)
        scaled = off_y / (tolerance * (1 + torch.maximum(y.abs(), new_y.abs())))
        spread = _wide(scaled.flatten(1)).square().mean(1).sqrt()
        error = torch.maximum(spread, off_gained.abs() / (tolerance * (1 + new_gained.abs()))).max().item()
        if math.isnan(error):
            break
        if error <= 1:
            y, gained, l = new_y, new_gained, (last if h == last - l else l + h)
        h *= min(max(0.9 * max(error, 1e-10) ** -0.2, 0.2), 5.0)
    raise ValueError(f"The likelihood cannot be integrated to {tolerance} at log-SNR {l:.4g}: try a larger tolerance.")


def _wide(value: Tensor) -> Tensor:
    """In the widest numbers that its device has."""
    return value.to(wide_dtype(value.device))
