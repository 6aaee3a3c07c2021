"""f-distill: distribution matching in any f-divergence, by one number per picture on the gradient of DMD.

DMD follows the gradient of the reverse Kullback-Leibler divergence, which forgives a student that leaves out a mode of the
teacher's. The gradient of another f-divergence is the same, times h(r) = f''(r) r^2, where r = p / q is how many times likelier
a noised picture is for the teacher than for the student. The discriminator knows it: its logit is log r.

Source: arXiv 2502.15681; the bounds, and the mean that r is divided by, as in its published code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.objectives.dmd2 import Compared, DistributionMatchingConfig, DistributionMatchingObjective, matching
from distill.parallel.reduce import summed
from distill.types import Draws

Divergence = Literal["reverse_kl", "forward_kl", "js", "softened_rkl", "squared_hellinger", "jeffreys", "neyman"]


class DivergenceConfig(DistributionMatchingConfig):
    """As DMD2's, and:

    divergence: f. reverse_kl is DMD2.
    bounds: (low, high) that the ratio r is kept between.
    bins: the ratio is divided by its mean over the batch within so many equal parts of the clock, as it depends on the level
    far more than on the picture; 0: it is taken as it is.
    adversarial_weight, discriminator_weight: both above 0, except with reverse_kl: the ratio is the discriminator's.
    """

    divergence: Divergence = "js"
    bounds: tuple[float, float] = (0.1, 20.0)
    bins: int = Field(default=10, ge=0)

    @model_validator(mode="after")
    def _check(self) -> DivergenceConfig:
        low, high = self.bounds
        if not 0 < low <= high:
            raise ValueError(f"bounds {self.bounds} must be above 0 and rise")
        if self.divergence != "reverse_kl" and not self.adversarial_weight:
            raise ValueError(
                f"divergence {self.divergence} is weighted by the discriminator's ratio: give an adversarial_weight and a "
                "discriminator_weight above 0, or divergence: reverse_kl"
            )
        if self.divergence != "reverse_kl" and self.relativistic and not self.bins:
            raise ValueError(
                "adversarial_loss relativistic leaves the ratio unknown up to a factor at every level, which bins take out: "
                "give bins above 0"
            )
        return self


class DivergenceObjective(DistributionMatchingObjective):
    """See the module."""

    config: DivergenceConfig
    source = "arXiv 2502.15681"

    def matched(self, models: Mapping[str, nn.Module], seen: Compared, draws: Draws) -> Tensor:
        plain = matching(seen.x0, seen.fake, seen.real.x0)
        if self.config.divergence == "reverse_kl":
            return plain
        logits, share = seen.logits, seen.level.t / self.path.t_noise
        if self.config.relativistic:  # which compares within a level, so that the logits' height there means nothing
            logits = logits - mean_by_level(logits.mean(1).double(), share, self.config.bins)[:, None]
        ratio = density_ratio(logits, self.config.bounds)
        if self.config.bins:
            ratio = ratio / mean_by_level(ratio, share, self.config.bins)
        weight = weight_of(self.config.divergence, ratio)
        total, count = summed(torch.stack([weight.sum(), weight.new_tensor(float(len(weight)))]))
        return weight / (total / count) * plain


@torch.no_grad()
def density_ratio(logits: Tensor, bounds: tuple[float, float]) -> Tensor:
    """(B,): p / q of pictures by the mean of their logits (B, N), within bounds."""
    return logits.double().mean(1).clamp(-10, 10).exp().clamp(*bounds)


@torch.no_grad()
def mean_by_level(ratio: Tensor, share: Tensor, bins: int) -> Tensor:
    """(B,): the mean of a number (B,) over those samples, on all processes, whose share of the clock (B,) is in the same of
    `bins`."""
    index = (share * bins).long().clamp(0, bins - 1)
    sums = ratio.new_zeros(2, bins)
    sums[0].index_add_(0, index, ratio)
    sums[1].index_add_(0, index, torch.ones_like(ratio))
    total, count = summed(sums)
    return (total / count.clamp(min=1))[index]


def weight_of(divergence: Divergence, r: Tensor) -> Tensor:
    """h(r) = f''(r) r^2 (B,) of a divergence E_q f(p / q)."""
    # arXiv 2502.15681, Table 1
    return {
        "reverse_kl": lambda: torch.ones_like(r),  # f = -log r
        "forward_kl": lambda: r,  # f = r log r
        "js": lambda: r / (r + 1),  # f = r log r - (r + 1) log((r + 1) / 2)
        "softened_rkl": lambda: 1 / (r + 1),  # f = (r + 1) log((r + 1) / (2 r))
        "squared_hellinger": lambda: r.sqrt(),  # f = 4 (1 - sqrt(r))
        "jeffreys": lambda: r + 1,  # f = (r - 1) log r
        "neyman": lambda: 1 / r,  # f = (1 / r - r) / 2
    }[divergence]()
