"""How much each noise level counts: the published weightings of the diffusion loss, as factors on the error of x0.

x is given, so alpha dx0 + sigma deps = 0 and the error of any reading p x0 + q eps is (p - q SNR^1/2) times that of x0. One
number per level therefore says everything: a weighting written for eps is that weighting times SNR here, whatever the
network predicts. SNR = alpha^2 / sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from gen.nn.registry import Config
from samplers.path import NoiseLevel, Path, Scalar
from samplers.prediction import prediction_row

MIN_ALPHA = 1e-4  # below it a level counts as this one: the weight of pure noise stays finite

# -> log p(l) (B,), the density of the drawn levels over half log-SNR; asked for only by weightings that undo it
Density = Callable[[], Tensor]


def bounded_level(level: NoiseLevel, min_sigma: float) -> NoiseLevel:
    """Levels (B,) kept from clean data and pure noise, where weights are infinite."""
    return replace(level, alpha=level.alpha.clamp(min=MIN_ALPHA), sigma=level.sigma.clamp(min=min_sigma))


def factor_on_x0(kind: str, level: NoiseLevel, path: Path, sigma_data: float = 0.5) -> Scalar:
    """The factor (B,) from an error of x0 to that of the reading `kind` at levels that are neither clean nor pure noise."""
    p, q = prediction_row(kind, level, path, sigma_data)
    return p - q * level.alpha / level.sigma


class MinSNR(Config):
    """min(SNR, gamma): min(SNR, gamma) / SNR on eps, min(SNR, gamma) / (SNR + 1) on v. arXiv 2303.09556, section 3.4."""

    type: Literal["min_snr"]
    gamma: float = Field(default=5.0, gt=0)

    def on_x0(self, snr: Tensor, density: Density) -> Tensor:
        return snr.clamp(max=self.gamma)


class SoftMinSNR(Config):
    """gamma SNR / (SNR + gamma), a smooth min(SNR, gamma). arXiv 2401.11605, section 3.4."""

    type: Literal["soft_min_snr"]
    gamma: float = Field(default=4.0, gt=0)

    def on_x0(self, snr: Tensor, density: Density) -> Tensor:
        return self.gamma * snr / (snr + self.gamma)


class P2(Config):
    """1 / (k + SNR)^gamma on eps. arXiv 2204.00227, equation 8."""

    type: Literal["p2"]
    gamma: float = Field(default=1.0, ge=0)
    k: float = Field(default=1.0, gt=0)

    def on_x0(self, snr: Tensor, density: Density) -> Tensor:
        return snr / (self.k + snr) ** self.gamma


class TruncatedSNR(Config):
    """max(SNR, low): the larger of the errors of x0 and eps where low is 1. arXiv 2202.00512, section 4."""

    type: Literal["truncated_snr"]
    low: float = Field(default=1.0, gt=0)

    def on_x0(self, snr: Tensor, density: Density) -> Tensor:
        return snr.clamp(min=self.low)


class EDM(Config):
    """(r^2 + sigma_data^2) / (r sigma_data)^2 with r = sigma / alpha, which is 1 on EDM's F. arXiv 2206.00364, Table 1."""

    type: Literal["edm"]
    sigma_data: float = Field(default=0.5, gt=0)

    def on_x0(self, snr: Tensor, density: Density) -> Tensor:
        return snr + self.sigma_data**-2


class Sigmoid(Config):
    """sigmoid(bias - log SNR) on eps, as an integral over log-SNR: the weight is divided by the density of the drawn levels, so
    that only the noise of the estimate depends on how they are drawn. arXiv 2303.00848, section 3; arXiv 2410.19324,
    section 3.1."""

    type: Literal["sigmoid"]
    bias: float = 2.0

    def on_x0(self, snr: Tensor, density: Density) -> Tensor:
        # half of the integral over log-SNR = 2 l is the integral over l
        return math.exp(self.bias) * (snr.log() - self.bias).sigmoid() * (-density()).exp()


Weighting = Annotated[MinSNR | SoftMinSNR | P2 | TruncatedSNR | EDM | Sigmoid, Field(discriminator="type")]
