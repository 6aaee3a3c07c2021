"""Consistency models in equations: the boundary, the schedules of training, the levels.

Everything is in the noise ratio r = sigma / alpha, the sigma of the papers, in which every path is x / alpha = x0 + r eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.path import Path, expand
from samplers.prediction import Prediction


def check_reach(path: Path, sigma_max: float) -> None:
    """ValueError where the path has no level as noisy as sigma_max."""
    noisiest = path(path.t_noise)
    reach = noisiest.sigma / noisiest.alpha if noisiest.alpha else math.inf
    if sigma_max > reach * (1 + 1e-9):
        raise ValueError(
            f"The noisiest level of the teacher's path has sigma / alpha = {reach:.6g}, but sigma_max is {sigma_max:g}: give "
            "at most that (and in schedule_options too)."
        )


@dataclass(frozen=True)
class Boundary:
    """The consistency function of a network: f = x / alpha where r = sigma_min, whatever the network says.

    For EDM's network output F the published scalings, f = c_skip x + c_out F with c_skip = sd^2 / ((r - sigma_min)^2 + sd^2)
    and c_out = sd (r - sigma_min) / sqrt(r^2 + sd^2), sd = sigma_data. For all other kinds f = c x / alpha + (1 - c) x0
    with c = w^2 / ((r - sigma_min)^2 + w^2), which leaves a trained denoiser as it is at r far above `width` w.

    Source: arXiv 2303.01469, appendix C.
    """

    sigma_min: float = 0.002
    sigma_data: float = 0.5
    width: float = 0.05

    def __call__(self, prediction: Prediction, kind: str) -> Tensor:
        """f (B, C, H, W) of a prediction by a network of this kind (eps, x0, v, flow or edm)."""
        x, level = prediction.x, prediction.level
        y, ratio = x / expand(level.alpha, x), level.sigma / level.alpha
        above = ratio - self.sigma_min
        if kind == "edm":
            c_skip = self.sigma_data**2 / (above**2 + self.sigma_data**2)
            c_out = self.sigma_data * above / (ratio**2 + self.sigma_data**2) ** 0.5
            # arXiv 2303.01469, equation 5: f = c_skip x + c_out F
            return expand(c_skip, x) * y + expand(c_out, x) * prediction.raw
        keep = self.width**2 / (above**2 + self.width**2)
        return torch.lerp(prediction.x0, y, expand(keep, x))


def ratios(count: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """`count` noise ratios from sigma_min up to sigma_max, even in r^(1 / rho), float64. arXiv 2206.00364, equation 5."""
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    values = torch.lerp(torch.full_like(u, sigma_min ** (1 / rho)), torch.full_like(u, sigma_max ** (1 / rho)), u) ** rho
    values[0], values[-1] = sigma_min, sigma_max
    return values


def growing_count(step: int, total: int, first: int, last: int) -> int:
    """N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 levels: s0 at the start, s1 + 1 at the end.

    Source: arXiv 2303.01469, appendix C.
    """
    progress = min(step / total, 1.0)
    root = math.sqrt(progress * ((last + 1) ** 2 - first**2) + first**2)
    return math.ceil(round(root - 1, 9)) + 1


def growing_decay(count: int, first: int, decay: float) -> float:
    """mu = exp(s0 log mu0 / N): the target's average gets slower as the levels get denser. arXiv 2303.01469, appendix C."""
    return math.exp(first * math.log(decay) / count)


def doubling_count(step: int, total: int, first: int, last: int) -> int:
    """N(k) = min(s0 2^floor(k / K'), s1) + 1 levels, K' = floor(K / (log2 floor(s1 / s0) + 1)).

    Source: arXiv 2310.14189, section 3.4.
    """
    every = max(1, math.floor(total / (math.log2(last // first) + 1)))
    return min(first * 2 ** min(step // every, 64), last) + 1


def log_normal_shares(grid: Tensor, mean: float, std: float) -> Tensor:
    """How often each of the pairs (grid[i], grid[i + 1]) is trained, (N - 1,), adding up to 1: the share of a log-normal
    between its ends. arXiv 2310.14189, section 3.5."""
    cumulative = torch.erf((grid.log() - mean) / (math.sqrt(2) * std))
    shares = cumulative[1:] - cumulative[:-1]
    return shares / shares.sum()


def pick(shares: Tensor, chance: Tensor) -> Tensor:
    """(B,) int64: i with probability shares[i], from uniform numbers (B,)."""
    return torch.searchsorted(shares.cumsum(0), chance.double(), right=True).clamp(max=len(shares) - 1)


def tuned_ratio(high: Tensor, stage: int, k: float, b: float, q: float) -> Tensor:
    """r = t (1 - n(t) / q^stage) clipped at 0, with n(t) = 1 + k sigmoid(-b t): ECT's pairs, which close up stage by stage.

    Source: arXiv 2406.14548, section 3.2.
    """
    n = 1 + k * torch.sigmoid(-b * high)
    return (high * (1 - n * q**-stage)).clamp(min=0)
