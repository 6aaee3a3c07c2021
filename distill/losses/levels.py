"""How training levels are drawn: one noise level per sample, and the density they are drawn from.

Densities are over half log-SNR l = log(alpha / sigma), the variable that every path shares, so that a weight can undo the
choice of distribution: see `distill.losses.loss_weighting.Sigmoid`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from distill.types import Draws
from gen.nn.registry import Config
from samplers.path import NoiseLevel, Path, VariancePreserving

LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


class TimeConfig(Config):
    """One level per sample.

    uniform: t uniform over the path's clock. logit_normal: t = t_noise sigmoid(mean + std n) (arXiv 2403.03206, section 3.1).
    log_normal: sigma / alpha = exp(mean + std n); EDM's is mean -1.2, std 1.2 (arXiv 2206.00364, Table 1). uniform_logsnr:
    log(sigma / alpha) uniform from log(low) to log(high) (VDM, arXiv 2107.00630). karras: (sigma / alpha)^(1 / rho) uniform
    from that of low to that of high, the density of EDM's grid (arXiv 2206.00364, equation 5).
    """

    type: Literal["uniform", "logit_normal", "log_normal", "uniform_logsnr", "karras"] = "logit_normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    low: float = Field(default=0.002, gt=0, description="of sigma / alpha, for uniform_logsnr and karras")
    high: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> TimeConfig:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


def draw_levels(time: TimeConfig, path: Path, draws: Draws, device: torch.device | None = None) -> NoiseLevel:
    """One level per sample, (B,). Levels noisier than the path's noisiest become that one."""
    if time.type == "uniform":
        return path(draws.uniform("time", device=device) * path.t_noise)
    if time.type == "logit_normal":
        return path(torch.sigmoid(time.mean + time.std * draws.normal("time", device=device)) * path.t_noise)
    if time.type == "log_normal":
        logsnr = -(time.mean + time.std * draws.normal("time", device=device))
    elif time.type == "karras":
        first, last = time.low ** (1 / time.rho), time.high ** (1 / time.rho)
        # arXiv 2206.00364, equation 5
        logsnr = -time.rho * (first + (last - first) * draws.uniform("time", device=device)).log()
    else:
        low, high = math.log(time.low), math.log(time.high)
        logsnr = -(low + (high - low) * draws.uniform("time", device=device))
    noisiest = path(path.t_noise)
    return path.at_logsnr(logsnr.clamp(min=noisiest.logsnr) if noisiest.alpha else logsnr)


def log_density(time: TimeConfig, path: Path, level: NoiseLevel) -> Tensor:
    """log p(l) (B,) of the distribution that `draw_levels` draws from, where l = log(alpha / sigma)."""
    if time.type == "log_normal":
        return _log_normal(-level.logsnr, time.mean, time.std)
    if time.type in ("uniform_logsnr", "karras"):
        inside = (level.logsnr <= -math.log(time.low)) & (level.logsnr >= -math.log(time.high))
        if time.type == "uniform_logsnr":
            return torch.where(inside, -math.log(math.log(time.high / time.low)), -math.inf)
        span = time.high ** (1 / time.rho) - time.low ** (1 / time.rho)
        return torch.where(inside, -level.logsnr / time.rho - math.log(time.rho * span), -math.inf)
    d_alpha, d_sigma = path.rate(level)
    slope = (d_sigma / level.sigma - d_alpha / level.alpha).abs().log()  # |dl / dt|
    if time.type == "uniform":
        return -slope - math.log(path.t_noise)
    u = level.t / path.t_noise
    return _log_normal(torch.logit(u), time.mean, time.std) - (u * (1 - u)).log() - slope - math.log(path.t_noise)


def _log_normal(value: Tensor, mean: float, std: float) -> Tensor:
    return -0.5 * ((value - mean) / std) ** 2 - math.log(std) - LOG_ROOT_2PI


def draw_index(draws: Draws, purpose: str, count: int, device: torch.device) -> Tensor:
    """(B,) int64, uniform over 0 ... count - 1."""
    return (draws.uniform(purpose, device=device).double() * count).long().clamp(max=count - 1)


def draw_start_index(draws: Draws, count: int, noisiest_share: float, device: torch.device) -> Tensor:
    """(B,) int64 as `draw_index`, but the last of them, the noisiest, for a share of the samples besides."""
    noisiest = draws.uniform("noisiest", device=device) < noisiest_share
    return torch.where(noisiest, count - 1, draw_index(draws, "step", count, device))


def first_clock(path: Path) -> Tensor:
    """The clock of the first level with noise, of which a network knows: a table's first timestep, else a thousandth."""
    share = 1 / len(path.table) if isinstance(path, VariancePreserving) else 1e-3 * path.t_noise
    return torch.tensor(share, dtype=torch.float64)
