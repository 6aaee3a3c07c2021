"""Inverse problems: a denoiser of pictures becomes one of pictures that explain a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.energy import (
    check_count,
    check_numbers,
    detach_prediction,
    limit_rms,
    predict_with_gradient,
    x0_with_gradient,
)
from samplers.guidance.operators import Operator
from samplers.guidance.two_branch import read_x0
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

KINDS = ("exact", "pigdm", "projection")


@dataclass(frozen=True)
class Posterior(DenoiserWrapper):
    """D becomes E[x0 | x_t, y] for a measurement y = A x0 + noise_std n, with p(x0 | x_t) taken as a Gaussian N(D(x), C),

        x0 = D(x) + C A^T (A C A^T + noise_std^2)^-1 (y - A D(x)).

    kind says what C is. By Tweedie's second formula it is (sigma^2 / alpha) dD/dx:
      exact       that, by vector-Jacobian products, one for each iteration: exact where the data are Gaussian
      pigdm       r^2 inside the inverse, r^2 = spread^2 sigma^2 / (spread^2 alpha^2 + sigma^2), the posterior variance of
                  Gaussian data of standard deviation `spread`; dD/dx outside: one product through the denoiser
      projection  r^2 everywhere: no gradient runs through the denoiser; data keep what A does not see
    The inverse is by at most `iterations` of conjugate gradients, ended at a relative residual of 1e-12 (1e-6 below float64).
    An operator that is not linear (`Composed`, a decoder) is linearised at D(x) at every evaluation, which makes a
    Gauss-Newton step. `noise_std` is at least 1e-4 in effect, or exact data would ask for an exact inverse.

    weight: a factor on the move; 0 is the denoiser itself, and so is a log-SNR outside `interval`. At pure noise, where dD/dx
    says nothing, pigdm and exact do nothing. checkpoint and limit as in `TFG`. Acts on x0, outside guidance,
    whose conditional branch is the D of dD/dx.

    Source: arXiv 2209.11888 section 3, "Pseudoinverse-guided diffusion models" (ICLR 2023; its r^2, for spread 1);
    arXiv 2310.06721 (the covariance by Tweedie's formula); arXiv 2405.13712 (conjugate gradients, matrix-free).
    """

    denoiser: Denoiser
    operator: Operator
    measurement: Tensor
    noise_std: float = 0.0
    kind: str = "pigdm"
    spread: float = 1.0
    weight: float = 1.0
    iterations: int = 50
    interval: Interval = EVERYWHERE
    limit: float | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"A posterior got kind={self.kind!r}; choose one of {', '.join(KINDS)}.")
        check_numbers("A posterior", noise_std=self.noise_std, weight=self.weight)
        check_count("A posterior", 1, iterations=self.iterations)
        check_interval(self.interval)
        if not 0 < self.spread < math.inf:
            raise ValueError(f"A posterior got spread={self.spread!r}; give the data's standard deviation, above 0.")
        if self.limit is not None:
            check_numbers("A posterior", limit=self.limit)
        if not self.measurement.is_floating_point() or not bool(self.measurement.isfinite().all()):
            raise ValueError("A measurement must hold finite floats; others, or NaN, were given.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        through = self.kind != "projection"
        if self.weight == 0 or not contains(self.interval, level) or level.sigma == 0 or (through and level.alpha == 0):
            return self.denoiser(x, level, condition, context)
        if through:
            prediction = predict_with_gradient(self.denoiser, x, level, condition, context, self.checkpoint)
            with torch.enable_grad():
                x0 = x0_with_gradient(prediction)
        else:
            with torch.no_grad():
                prediction = self.denoiser(x, level, condition, context)
            x0 = read_x0(prediction)
        linear = self.operator.near(x0.detach())
        wanted = self.measurement.to(x0)
        if wanted.shape[1:] != linear.value.shape[1:] or wanted.shape[0] not in (1, len(x)):
            raise ValueError(
                f"The measurement has shape {tuple(wanted.shape)}, but the operator makes {tuple(linear.value.shape)} of the "
                "images here; give one that fits."
            )
        variance = self.spread**2 * level.sigma**2 / (self.spread**2 * level.alpha**2 + level.sigma**2)
        noise = max(self.noise_std, 1e-4) ** 2

        def covariance(v: Tensor) -> Tensor:
            with torch.enable_grad():
                aligned = (x0 * v).sum()
            (product,) = torch.autograd.grad(aligned, prediction.x, retain_graph=True)
            return level.sigma**2 / level.alpha * product

        def system(u: Tensor) -> Tensor:
            back = linear.adjoint(u)
            spread = covariance(back) if self.kind == "exact" else variance * back
            return linear.apply(spread) + noise * u

        residual = wanted - linear.value
        solution = conjugate_gradients(system, residual.expand_as(linear.value), self.iterations)
        back = linear.adjoint(solution)
        move = covariance(back) if through else variance * back  # C A^T (A C A^T + noise_std^2)^-1 (y - A D(x)), as above
        return detach_prediction(prediction, x).with_x0(x0.detach() + limit_rms(self.weight * move, self.limit))

    def log_likelihood(self, x0: Tensor, condition: Condition) -> Tensor:
        """log p(y | x0) (B,) up to a constant: the energy of the same problem, for TFG, DPS and universal guidance."""
        off = (self.measurement.to(x0) - self.operator(x0)).flatten(1)
        return -off.square().sum(1) / (2 * max(self.noise_std, 1e-4) ** 2)


def conjugate_gradients(system: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """u (B, ...) with system(u) = right, system symmetric and positive definite for each row; `iterations` at most.

    A row that has reached a relative residual of 1e-12 (1e-6 below float64), or along whose direction the system is not
    positive (a network's Jacobian is not quite symmetric), stays as it is.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    def wide(v: Tensor) -> Tensor:
        return v.reshape(-1, *[1] * (right.ndim - 1))

    solution, residual, direction = torch.zeros_like(right), right, right
    square = dot(residual, residual)
    goal = square * (1e-24 if right.dtype == torch.float64 else 1e-12)
    open_ = square > goal
    for _ in range(iterations):
        if not bool(open_.any()):
            break
        image = system(direction)
        curvature = dot(direction, image)
        open_ = open_ & (curvature > 0)
        step = torch.where(open_, square / torch.where(open_, curvature, 1.0), 0.0)
        solution = solution + wide(step) * direction
        residual = residual - wide(step) * image
        following = dot(residual, residual)
        direction = residual + wide(torch.where(open_, following / torch.where(open_, square, 1.0), 0.0)) * direction
        square = torch.where(open_, following, square)
        open_ = open_ & (square > goal)
    return solution
