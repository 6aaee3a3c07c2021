"""Exact denoisers of toy data: the test bed on which samplers, guidance and solvers are checked against known answers.

`Gaussian` and `Mixture` are the optimal denoisers of Gaussian data and of Gaussian mixtures, E[x0 | x_t] and E[eps | x_t] in
closed form with no cancellation at either end of a path; `LinearPosterior` is that of Gaussian data given a linear measurement.
They work on any path and predict in any way that a network may (eps, x0, v, flow, edm). Data points have any shape: x is
(B, *shape) with the shape of the means. `reference_ode` integrates the probability-flow ODE of any denoiser to high accuracy.

    mixture = Mixture.example(RectifiedFlow())
    x = sample(mixture, get_solver("dpmpp_2m"), noise, get_grid("uniform", mixture.path, 10))
    error = x - reference_ode(mixture, ...)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel, Path, expand
from samplers.prediction import Prediction, prediction_row


def predict_as(kind: str, path: Path, x: Tensor, level: NoiseLevel, x0: Tensor, eps: Tensor) -> Prediction:
    """The prediction that a network of this kind would make if it knew x0 and eps."""
    a, b = prediction_row(kind, level, path)
    return Prediction(x, level, expand(a, x) * x0 + expand(b, x) * eps, (a, b))


@dataclass(frozen=True)
class Gaussian:
    """Data x0 ~ N(mean, diag(std^2)), mean and std of shape (*shape); std 0 is a point mass."""

    path: Path
    mean: Tensor
    std: Tensor
    kind: str = "x0"

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        context.count(x.shape[0])
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        total = alpha**2 * self.std**2 + sigma**2
        x0 = (sigma**2 * self.mean + alpha * self.std**2 * x) / total
        eps = sigma * (x - alpha * self.mean) / total
        return predict_as(self.kind, self.path, x, level, x0, eps)

    def ode(self, x: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
        """The probability-flow ODE from s to t: (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) stays what it was."""

        def spread(level: NoiseLevel) -> Tensor:
            return (level.alpha**2 * self.std**2 + level.sigma**2).sqrt()

        return t.alpha * self.mean + spread(t) / spread(s) * (x - s.alpha * self.mean)

    def marginal(self, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(mean, variance) of x_t, which the reverse SDE keeps."""
        return level.alpha * self.mean, level.alpha**2 * self.std**2 + level.sigma**2

    def sample(self, count: int, level: NoiseLevel, generator: torch.Generator) -> Tensor:
        mean, variance = self.marginal(level)
        z = torch.randn((count, *self.mean.shape), generator=generator, dtype=self.mean.dtype)
        return mean + variance.sqrt() * z


@dataclass(frozen=True)
class Mixture:
    """Data from K Gaussians: means and stds (K, *shape), weights (K,), and optionally the class of each component (K,).

    With labels, Condition.label (B,) restricts row i to the components of its class; a negative label means all of them.
    """

    path: Path
    means: Tensor
    stds: Tensor
    weights: Tensor
    labels: Tensor | None = None
    kind: str = "x0"

    @staticmethod
    def example(
        path: Path, kind: str = "x0", labelled: bool = False, shape: tuple[int, ...] = (2,), components: int = 5
    ) -> Mixture:
        """A fixed mixture in d = 2 with K = 5; three classes if labelled."""
        g = torch.Generator().manual_seed(7)
        means = 1.5 * torch.randn((components, *shape), generator=g, dtype=torch.float64)
        stds = 0.2 + 0.4 * torch.rand((components, *shape), generator=g, dtype=torch.float64)
        weights = 0.5 + torch.rand(components, generator=g, dtype=torch.float64)
        labels = torch.arange(components) % 3 if labelled else None
        return Mixture(path, means, stds, weights / weights.sum(), labels, kind)

    @cached_property
    def _pixels(self) -> tuple[int, ...]:
        return tuple(range(2, self.means.ndim + 1))

    def _log_weights(self, batch: int, condition: Condition) -> Tensor:
        """(B, K) log weights, normalised over the components each row may use."""
        logs = self.weights.log().expand(batch, -1)
        if self.labels is not None and condition.label is not None:
            label = condition.label[:, None]
            logs = logs.masked_fill((label >= 0) & (label != self.labels), -math.inf)
        return logs.log_softmax(1)

    def _components(self, x: Tensor, level: NoiseLevel, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """(log joint density (B, K), x0 of each component (B, K, *shape), eps of each)."""
        x = x[:, None]
        alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
        total = alpha**2 * self.stds**2 + sigma**2
        off = x - alpha * self.means
        log_density = -0.5 * (off**2 / total + total.log() + math.log(2 * math.pi)).sum(self._pixels)
        x0 = (sigma**2 * self.means + alpha * self.stds**2 * x) / total
        return self._log_weights(len(x), condition) + log_density, x0, sigma * off / total

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        context.count(x.shape[0])
        joint, x0, eps = self._components(x, level, condition)
        share = joint.softmax(1).reshape(*joint.shape, *[1] * (x.ndim - 1))
        return predict_as(self.kind, self.path, x, level, (share * x0).sum(1), (share * eps).sum(1))

    def log_density(self, x: Tensor, level: NoiseLevel, condition: Condition | None = None) -> Tensor:
        """log p_t(x) (B,)."""
        return self._components(x, level, condition or Condition())[0].logsumexp(1)

    def score(self, x: Tensor, level: NoiseLevel, condition: Condition | None = None) -> Tensor:
        """grad_x log p_t(x), by automatic differentiation: independent of the closed-form denoiser."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.log_density(x, level, condition).sum(), x)[0]

    def sample(self, count: int, level: NoiseLevel, generator: torch.Generator, condition: Condition | None = None) -> Tensor:
        """x_t (count, *shape) from the exact marginal."""
        weights = self._log_weights(count, condition or Condition()).exp()
        k = torch.multinomial(weights, 1, generator=generator)[:, 0]
        shape = (count, *self.means.shape[1:])
        z, e = (torch.randn(shape, generator=generator, dtype=self.means.dtype) for _ in range(2))
        return level.alpha * (self.means[k] + self.stds[k] * z) + level.sigma * e

    def predicting(self, kind: str) -> Mixture:
        return replace(self, kind=kind)


@dataclass(frozen=True)
class LinearPosterior:
    """Gaussian data given a measurement y = A x0 + noise_std n: the denoiser E[x0 | x_t, y], exact on any path.

    prior: the data without the measurement, with a mean of shape (*shape) and D = the number of its entries.
    matrix: A (M, D), on flattened data points. measurement: y (M,). noise_std: above 0.
    """

    prior: Gaussian
    matrix: Tensor
    measurement: Tensor
    noise_std: float

    @property
    def path(self) -> Path:
        return self.prior.path

    def moments(self) -> tuple[Tensor, Tensor]:
        """(mean (D,), covariance (D, D)) of x0 given y."""
        variance = (self.prior.std**2).expand_as(self.prior.mean).flatten()
        gain = self._gain(variance[None])[0]
        mean = self.prior.mean.flatten()
        return mean + gain @ (self.measurement - self.matrix @ mean), variance.diag() - gain @ (self.matrix * variance)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        plain = self.prior(x, level, condition, context)  # counts the evaluation
        alpha, sigma, std = expand(level.alpha, x), expand(level.sigma, x), self.prior.std
        total = (alpha**2 * std**2 + sigma**2).expand_as(x)
        # x0 given x_t alone has this variance; divided by sigma it stays exact at clean data
        per_sigma = std**2 * sigma / total
        off = self.measurement - plain.x0.flatten(1) @ self.matrix.T
        weight = torch.linalg.solve(self._system((per_sigma * sigma).flatten(1)), off[..., None])[..., 0]
        move = per_sigma * (weight @ self.matrix).unflatten(1, x.shape[1:])
        return predict_as(self.prior.kind, self.path, x, level, plain.x0 + sigma * move, plain.eps - alpha * move)

    def _system(self, variance: Tensor) -> Tensor:
        """A V A^T + noise_std^2 (B, M, M), V the diagonal matrix of variances (B, D)."""
        noise = self.noise_std**2 * torch.eye(len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device)
        return (self.matrix * variance[:, None]) @ self.matrix.T + noise

    def _gain(self, variance: Tensor) -> Tensor:
        """V A^T (A V A^T + noise_std^2)^-1, (B, D, M)."""
        return torch.linalg.solve(self._system(variance), self.matrix * variance[:, None]).mT


def reference_ode(
    denoiser: Denoiser, x: Tensor, s: NoiseLevel, t: NoiseLevel, steps: int = 2000, condition: Condition | None = None
) -> Tensor:
    """The probability-flow ODE from s to t (both finite) by classical Runge-Kutta in logsnr.

    In y = x / alpha and r = sigma / alpha it is dy/dr = eps, so dy/dlogsnr = -r eps.
    """
    condition, path = condition or Condition(), denoiser.path

    def slope(y: Tensor, logsnr: float) -> Tensor:
        level = path.at_logsnr(logsnr)
        return -math.exp(-logsnr) * denoiser(level.alpha * y, level, condition, Context()).eps

    y, h = x / s.alpha, (t.logsnr - s.logsnr) / steps
    for i in range(steps):
        l = s.logsnr + i * h
        k1 = slope(y, l)
        k2 = slope(y + h / 2 * k1, l + h / 2)
        k3 = slope(y + h / 2 * k2, l + h / 2)
        k4 = slope(y + h * k3, l + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return t.alpha * y
