"""Inductive moment matching (IMM, arXiv 2503.07565): a one-stage few-step model, trained by matching distributions.

f_{s,t}(x_t) goes from level t to s in one step, by DDIM with what the network, given s, predicts at x_t. Its samples at s are
to be distributed as those that start from a slightly cleaner level r, s <= r < t, where the model has already learned it: the
maximum mean discrepancy between groups of both is the loss. At r = s the step is no step, which is where the induction begins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import solver_steps as steps
from distill.losses.alike import alike
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale
from distill.objectives.mean_flow import check_flow_map, with_target_time
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from gen.models.folder import Defaults
from samplers.denoiser import Condition
from samplers.path import NoiseLevel

Kernel = Literal["laplace", "rbf", "energy"]


class MomentMatchingConfig(StudentConfig):
    """particles: M, how many samples of the batch, one after another, make a group that shares its levels. latest, earliest: of
    t. mapping, gap: r is below t by 2^-gap of the whole range of the noise ratio, of time, of the log of the ratio, or of one
    over the ratio. kernel: laplace exp(-d), rbf exp(-d^2 / 2) or energy -d, of distances d over their scale. power, bias: a and
    b of the weight of a level. guidance_scale: of classifier-free guidance that the finished student draws with; None: none.
    restart: it draws each step from clean data with new noise, instead of jumping on.

    Samples of different labels or captions are of different distributions and are not compared: with captions that are all
    different a group compares each sample with itself alone, as consistency models do. Data of type grouped have groups of one
    condition; `compared`, which is logged, is the share of a group's pairs that are.
    """

    particles: int = Field(default=4, gt=0)
    latest: float = Field(default=0.994, gt=0, lt=1)
    earliest: float = Field(default=0.001, gt=0, lt=1)
    mapping: Literal["ratio", "time", "log_ratio", "inverse_ratio"] = "ratio"
    gap: int = Field(default=12, ge=1, le=30)
    kernel: Kernel = "laplace"
    restart: bool = False
    power: int = Field(default=1, ge=1, le=2)
    bias: float = 5.0

    @model_validator(mode="after")
    def _ordered(self) -> MomentMatchingConfig:
        if not self.earliest < self.latest:
            raise ValueError(f"earliest {self.earliest} must be below latest {self.latest}")
        return self


class MomentMatchingObjective(StudentObjective):
    sampler = "flow_map"
    scalars = ("target_time",)
    source = "arXiv 2503.07565"
    config: MomentMatchingConfig

    def __init__(self, config: MomentMatchingConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        check_flow_map(self)

    def times(self, draws: Draws, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(s, r, t), (B,) float64, s <= r < t; one triple per group."""
        config = self.config
        u = draws.uniform("times", (2,), device).double().unflatten(0, (-1, config.particles))[:, :1]
        u = u.expand(-1, config.particles, -1).flatten(0, 1)
        t = config.earliest + (config.latest - config.earliest) * u[:, 0]
        s = config.earliest + (t - config.earliest) * u[:, 1]
        return s, torch.maximum(s, self.below(t)), t

    def below(self, t: Tensor) -> Tensor:
        """r (B,) that is below t (B,) by a constant, whatever s."""
        config, share = self.config, 2.0**-self.config.gap
        low, high = (v / (1 - v) for v in (config.earliest, config.latest))
        ratio = t / (1 - t)
        # arXiv 2503.07565, appendix on the mapping function r(s, t)
        if config.mapping == "ratio":
            ratio = (ratio - (high - low) * share).clamp(min=0)
        elif config.mapping == "time":
            return t - (config.latest - config.earliest) * share
        elif config.mapping == "log_ratio":
            ratio = ratio * (low / high) ** share
        else:
            ratio = 1 / (1 / ratio + (1 / low - 1 / high) * share)
        return ratio / (1 + ratio)

    def defaults(self) -> Defaults:
        scale = self.config.guidance_scale
        options = {"gamma": 1.0} if self.config.restart else {}
        found = super().defaults()
        if scale is None or self.config.embed_guidance:
            return found.model_copy(update={"sampler_options": options})
        return found.model_copy(update={"sampler_options": options, "guidance_scale": scale})

    def jump(self, network: nn.Module, x: Tensor, t: NoiseLevel, s: NoiseLevel, condition: Condition, scale: Scale) -> Tensor:
        """f_{s,t}(x_t)."""
        return steps.ddim(self.predict(network, x, t, with_target_time(condition, s.t), scale).x0, x, t, s)

    def weight(self, t: NoiseLevel) -> Tensor:
        """w = sigmoid(b - lambda) (-d lambda / dt) alpha^a / (alpha^2 + sigma^2) / 2 with lambda the log-SNR. Equation 13."""
        d_alpha, d_sigma = self.path.rate(t)
        slope = 2 * (d_sigma / t.sigma - d_alpha / t.alpha)
        share = t.alpha**self.config.power / (t.alpha**2 + t.sigma**2)
        # arXiv 2503.07565, equation 13
        return 0.5 * torch.sigmoid(self.config.bias - 2 * t.logsnr) * slope * share

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        count = self.config.particles
        if len(batch) % count:
            raise ValueError(f"A batch of {len(batch)} does not split into groups of {count} particles; use a multiple.")
        batch = self.dropped(batch, draws, count)  # a group has one condition
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, x0.device), self.scale(draws, x0.device)
        s, r, t = (self.path(v) for v in self.times(draws, x0.device))
        eps = draws.normal_like("eps", x0)
        x_t = t.mix(x0, eps)
        from_t = self.jump(models["student"], x_t, t, s, condition, scale)
        with torch.no_grad():
            from_r = self.jump(unwrap(models["student"]), steps.ddim(x0, x_t, t, r), r, s, condition, scale)
        bandwidth = (s.alpha * t.sigma - t.alpha * s.sigma)[::count]  # |c_out|, t - s on a rectified flow
        groups_t, groups_r = (v.flatten(1).unflatten(0, (-1, count)) for v in (from_t, from_r))
        compared = alike(batch, count, x0.device, self.reads_text)
        discrepancy = mmd(groups_t, groups_r, bandwidth, compared, self.config.kernel)
        logged = {"mmd": discrepancy.detach().mean(), "compared": compared.float().mean()}
        return (self.weight(t)[::count].to(discrepancy) * discrepancy).mean(), logged


def mmd(a: Tensor, b: Tensor, bandwidth: Tensor, compared: Tensor, kind: Kernel = "laplace") -> Tensor:
    """The squared maximum mean discrepancy (G,) between groups of samples a and b (G, M, D), by a kernel of the distance
    d = |x - y| / (bandwidth D); biased, so 0 for equal groups and never negative where all pairs are compared.

    compared (G, M, M): which pairs count. kind: laplace exp(-d), rbf exp(-d^2 / 2), energy -d. Equations 9 and 12.
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x[:, :, None] - y[:, None]).square().sum(-1)
        distance = squared.clamp(min=1e-16).sqrt()  # with no gradient at 0, where there is none to have
        scaled = distance / (bandwidth.to(x)[:, None, None] * math.prod(x.shape[2:]))
        if kind == "energy":
            return -scaled
        return torch.exp(-scaled if kind == "laplace" else -(scaled**2) / 2)

    pairs = compared.to(a)
    # arXiv 2503.07565, equations 9 and 12
    total = (pairs * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))).sum((1, 2))
    return total / pairs.sum((1, 2))
