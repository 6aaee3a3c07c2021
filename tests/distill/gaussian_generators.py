"""Generators whose pictures' distribution is known, for tests of adversarial methods: data are Gaussian in every pixel, and the
best discriminator is the log ratio of two Gaussian densities."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from distill.objectives.bases.teacher import Teacher
from distill.types import Batch
from samplers.path import NoiseLevel
from tests.distill.students import SHAPE, exact_teacher

MEAN, STD = 0.6, 0.5


def gaussian_teacher() -> Teacher:
    """On a rectified flow; every pixel of the data is N(0.6, 0.5^2)."""
    teacher = exact_teacher(gaussian=True)
    teacher.network.oracle = type(teacher.network.oracle)(
        teacher.network.path, torch.full(SHAPE, MEAN).double(), torch.full(SHAPE, STD).double(), "x0"
    )
    teacher.network.config = SimpleNamespace(num_classes=0, channels=SHAPE[0], patch=1)
    return teacher


def gaussian_batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(9)
    latents = MEAN + STD * torch.randn(count, *SHAPE, generator=generator).double()
    return Batch(index=torch.arange(count), latents=latents)


def log_ratio(x: Tensor, real: tuple[Any, Any], fake: tuple[Any, Any]) -> Tensor:
    """(B,): log N(x; mean, deviation^2) of the real pair less that of the fake one, summed over pixels."""
    (m, a), (n, b) = real, fake
    return (-(((x - m) / a) ** 2) / 2 + ((x - n) / b) ** 2 / 2 + torch.log(torch.as_tensor(b / a))).flatten(1).sum(1)


def wide(value: Any) -> Any:
    """A (B,) as (B, 1, 1, 1)."""
    return value.view(-1, 1, 1, 1) if isinstance(value, Tensor) and value.ndim == 1 else value


class Family(nn.Module):
    """x0 = mean + share (m - mean) + spread z, with m the posterior mean at x_s and z the generator's noise.

    The spread is `scale` times the one with which x0 is distributed as the data for every share in [0, 1]; at share 1 and scale
    1 it is an exact sample of x0 given x_s. `moved` is added.
    """

    def __init__(self, path, share: float = 1.0, scale: float = 1.0, moved: float = 0.0):
        super().__init__()
        self.path = path
        self.share, self.scale, self.moved = (nn.Parameter(torch.tensor(v).double()) for v in (share, scale, moved))

    @staticmethod
    def posterior(level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(a, the deviation of m): m = mean + a (x_s - alpha mean)."""
        alpha, sigma = wide(level.alpha), wide(level.sigma)
        a = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return a, a * (alpha**2 * STD**2 + sigma**2) ** 0.5

    def parts(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor]:
        """(mean, deviation) of x0 given x_s."""
        a, deviation = self.posterior(level)
        mean = MEAN + self.share * a * (x - wide(level.alpha) * MEAN) + self.moved
        return mean, self.scale * (STD**2 - self.share**2 * deviation**2) ** 0.5

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        mean, deviation = self.parts(x, self.path(time.double()))
        return mean + deviation * condition.extra["latent"][:, : x[0].numel()].view_as(x).to(x)


class Deterministic(nn.Module):
    """x0 = mean + share STD (x_s - E x_s) / deviation of x_s. With a share of 1 or -1 it is distributed as the data, at any
    level; with that of the correlation of x0 and x_s it is the denoised mean."""

    def __init__(self, path, share: float):
        super().__init__()
        self.path, self.share = path, nn.Parameter(torch.tensor(share).double())

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        level = self.path(time.double())
        alpha, sigma = wide(level.alpha), wide(level.sigma)
        return MEAN + self.share * STD * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5
