"""Methods that regress the student's clean image onto a target: how an error counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.solver_steps import LevelTable, ddim
from distill.objectives.bases.perceptual import PerceptualConfig, PerceptualObjective
from distill.objectives.bases.teacher import Scale
from samplers.denoiser import Condition
from samplers.path import NoiseLevel, expand


class RegressionConfig(PerceptualConfig):
    """distance: l2 (mean over pixels), pseudo_huber (of the whole image, constant huber_c), huber (of each pixel) or perceptual
    (`distill.objectives.bases.perceptual`). weight: of a squared error of x0 at a level
    (`distill.losses.distances.level_weight`), at most max_weight; of other distances the error itself is multiplied by its
    root, so that snr_plus_one is the distance between predictions of v whatever the distance is."""

    distance: Literal["l2", "pseudo_huber", "huber", "perceptual"] = "l2"
    huber_c: float = Field(default=1e-3, gt=0)
    weight: losses.Weight = "truncated_snr"
    max_weight: float | None = Field(default=None, gt=0)


class RegressionObjective(PerceptualObjective):
    """See the module."""

    config: Any

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between images (B, ...), (B,)."""
        return self.beside(self._apart(a, b), a, b)

    def _apart(self, a: Tensor, b: Tensor) -> Tensor | None:
        kind, c = self.config.distance, self.config.huber_c
        if kind == "perceptual":
            return None
        if kind == "l2":
            return losses.squared(a, b)
        return losses.pseudo_huber(a, b, c) if kind == "pseudo_huber" else losses.elementwise_huber(a, b, c)

    def error(self, a: Tensor, b: Tensor, level: NoiseLevel) -> tuple[Tensor, dict[str, Tensor]]:
        """What `loss` returns for clean images a and their targets b (B, ...) at their levels.

        A weight of squared errors may grow like the SNR, 1 / t^2 towards clean data, as the error of x0 falls like t. The
        gradient of a norm does not fall with the error, so that it must not be multiplied by the SNR: the norm is taken of the
        error times the root of the weight.
        """
        weight = losses.level_weight(self.config.weight, level, self.config.max_weight or math.inf)
        if self.config.distance in ("l2", "perceptual"):
            return losses.average(self.distance(a, b), weight)
        root = expand(weight.sqrt().to(a), a)
        apart: Any = self._apart(root * a, root * b)
        perceptual = self.config.perceptual * self.perceptual_error(a, b) if self.config.perceptual else 0.0
        return (apart + weight.to(apart) * perceptual).mean(), {"error": apart.detach().mean()}

    @torch.no_grad()
    def onward(
        self,
        models: Mapping[str, nn.Module],
        z: Tensor,
        number: Tensor,
        end: Tensor,
        ladder: LevelTable,
        condition: Condition,
        scale: Scale,
    ) -> Tensor:
        """z at the levels of these numbers (B,), taken on to those of the ends (B,) by the network that makes targets; z itself
        where both are one. There the network is asked all the same, one level up, as it need not be called at clean data."""
        there = number == end
        level = ladder[torch.where(there, number + 1, number)]
        jumped = ddim(self.target_predict(models, z, level, condition, scale).x0, z, level, ladder[end])
        return torch.where(expand(there.to(z), z) != 0, z, jumped)
