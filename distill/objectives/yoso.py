"""YOSO: a one-step generator whose discriminator takes for real what the generator itself draws from less noise.

From x_t and from x_s, less noised data of the same noise, the generator draws two clean images. The harder one is to look like
the easier one to a discriminator that is told t. So real and drawn are never far apart, which keeps the game steady; and at
s = 0 the easier one is the data itself. Beside it images of close levels are drawn together by a distance in the teacher's
features (consistency), and all of them to the data, where there is little noise.

Source: arXiv 2403.12931 and its repository Luo-Yihong/YOSO, whose weights and distances of levels these are. Not in here: its
initial noise and its stage of adaptation for models whose noisiest level is no pure noise or that predict eps. Its code takes
the mean over logits and batch before the softplus; here every logit counts for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.adversarial import AdversarialLossConfig
from distill.losses.levels import first_clock
from distill.networks.discriminator import Noised, block_features
from distill.objectives.bases.network_judge import NetworkJudge
from distill.objectives.bases.student_config import UnguidedConfig
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import NoiseLevel


class YosoConfig(LatentConsistencyConfig, UnguidedConfig, AdversarialLossConfig):
    """cooperation, consistency: how far below t, as shares of the clock, the image is drawn that stands for real, and the one
    that is the target of consistency.

    noisiest_share: of the samples that start at the noisiest level; the others start at any level alike.
    adversarial_weight, consistency_weight, data_weight: of the losses. The second counts min(1 / (r_t - r_s), max_weight) at a
    level of the noise ratio r = sigma / alpha, the third min(1 / r_t^2, max_weight).
    distance: of consistency: features, the teacher's tokens after `blocks` (none given: half way through) of the two images, or
    another of `distill.objectives.bases.regression`.
    """

    steps: int = Field(default=1, gt=0)
    target_ema: float | None = Field(default=None, ge=0, lt=1)
    cooperation: float = Field(default=0.25, gt=0, le=1)
    consistency: float = Field(default=0.025, gt=0, le=1)
    adversarial_weight: float = Field(default=1.0, gt=0)
    consistency_weight: float = Field(default=2.0, ge=0)
    data_weight: float = Field(default=0.5, ge=0)
    max_weight: float = Field(default=5.0, gt=0)
    weight: Literal["uniform"] = "uniform"  # what levels count is said above, for each loss
    distance: Literal["features", "l2", "pseudo_huber", "huber", "perceptual"] = "features"  # type: ignore[assignment]
    blocks: tuple[int, ...] = ()


class Ladder(NamedTuple):
    """Data x0 (B, C, h, w) with one noise eps at three levels (B,): t, where the student draws from, and the two below it."""

    x0: Tensor
    eps: Tensor
    t: NoiseLevel
    cooperating: NoiseLevel
    consistent: NoiseLevel
    condition: Condition


class YosoObjective(NetworkJudge, LatentConsistencyObjective):
    """See the module. Roles `student` and `discriminator` train."""

    config: YosoConfig  # type: ignore[assignment]
    source: ClassVar[str] = "arXiv 2403.12931"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.blocks: tuple[int, ...] = ()
        if config.distance == "features" and config.consistency_weight:
            self.blocks, _ = self.judged_blocks(config.blocks, lambda depth: (depth // 2,))
        self.add_discriminator()

    def ladder(self, batch: Batch, draws: Draws) -> Ladder:
        """The levels of a batch, its data and their noise."""
        config, x0 = self.config, self.clean(batch)
        share = 1 - draws.uniform("level", device=x0.device).double()  # in (0, 1]
        share = torch.where(draws.uniform("noisiest", device=x0.device) < config.noisiest_share, 1.0, share)

        def below(by: float) -> NoiseLevel:
            return self.path((share - by).clamp(min=0) * self.path.t_noise)

        eps = draws.normal_like("eps", x0)
        condition = self.condition(batch, x0.device, draws)
        return Ladder(x0, eps, below(0.0), below(config.cooperation), below(config.consistency), condition)

    @torch.no_grad()
    def drawn(self, models: Mapping[str, nn.Module], at: Ladder, level: NoiseLevel, role: str | None = "student") -> Tensor:
        """The clean image that a network draws at a level, without gradients: at clean data the data's. role: as of
        `target_predict`."""
        x = level.mix(at.x0, at.eps)
        return self.consistent(self.target_predict(models, x, level, at.condition, role=role))

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        at, config = self.ladder(batch, draws), self.config

        def real() -> Noised:
            return Noised(self.drawn(models, at, at.cooperating), at.t)

        if phase.name == "discriminator":
            return self.told_apart(models, real(), Noised(self.drawn(models, at, at.t), at.t), at.condition)
        prediction = self.predict(models["student"], at.t.mix(at.x0, at.eps), at.t, at.condition)
        x0 = self.consistent(prediction)
        adversarial = self.fooling(models, real, Noised(x0, at.t), at.condition)
        total, logged = config.adversarial_weight * adversarial, {"adversarial": adversarial.detach()}
        if config.consistency_weight:
            target = self.drawn(models, at, at.consistent, role=None)
            apart = self.between(x0, target, at.condition)
            consistency = (self.closeness(at).to(apart) * apart).mean()
            total, logged["consistency"] = total + config.consistency_weight * consistency, consistency.detach()
        if config.data_weight:
            weight = losses.level_weight("snr", at.t, config.max_weight)
            to_data, _ = losses.average(losses.squared(x0, at.x0), weight)
            total, logged["to_data"] = total + config.data_weight * to_data, to_data.detach()
        return total, logged

    def closeness(self, at: Ladder) -> Tensor:
        """(B,): 1 / (r_t - r_s), what an error of consistency counts."""
        r_t, r_s = (level.sigma / level.alpha for level in (at.t, at.consistent))
        return (1 / (r_t - r_s)).clamp(max=self.config.max_weight)

    def between(self, a: Tensor, b: Tensor, condition: Condition) -> Tensor:
        """(B,): the distance between clean images (B, C, h, w)."""
        if self.config.distance != "features":
            return self.distance(a, b)
        level = self.path(first_clock(self.path).to(a.device).expand(len(a)))
        denoiser = self.teacher.denoiser(self.teacher.network, self.dtype)
        seen = block_features(denoiser, a, level, condition, self.blocks)
        with torch.no_grad():
            wanted = block_features(denoiser, b, level, condition, self.blocks)
        return torch.stack([losses.squared(x, y) for x, y in zip(seen, wanted, strict=True)]).mean(0)
