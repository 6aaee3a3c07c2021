"""Methods that regress the student's clean image onto a target: how an error counts."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from distill import losses
from distill.objectives.student import StudentConfig, StudentObjective
from samplers.path import NoiseLevel


class RegressionConfig(StudentConfig):
    """distance: l2 (mean over pixels), pseudo_huber (of the whole image, constant huber_c) or huber (of each pixel). weight: of
    an error of x0 at a level (`distill.losses.level_weight`), at most max_weight."""

    distance: Literal["l2", "pseudo_huber", "huber"] = "l2"
    huber_c: float = Field(1e-3, gt=0)
    weight: losses.Weight = "truncated_snr"
    max_weight: float | None = Field(None, gt=0)


class RegressionObjective(StudentObjective):
    """See the module."""

    config: Any

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between images (B, ...), (B,)."""
        kind, c = self.config.distance, self.config.huber_c
        if kind == "l2":
            return losses.squared(a, b)
        return losses.pseudo_huber(a, b, c) if kind == "pseudo_huber" else losses.elementwise_huber(a, b, c)

    def average(self, error: Tensor, level: NoiseLevel) -> tuple[Tensor, dict[str, Tensor]]:
        """What `loss` returns for errors (B,) at their levels."""
        weight = losses.level_weight(self.config.weight, level, self.config.max_weight or math.inf)
        return (weight.to(error) * error).mean(), {"error": error.detach().mean()}
