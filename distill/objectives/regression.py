"""Methods that regress the student's clean image onto a target: how an error counts.

Besides the numbers of the image, the features that a frozen network of pictures has of it can count: a distance as people see
it, as LPIPS is (arXiv 1801.03924, equation 1, all channels alike). Consistency models gain much by it (arXiv 2303.01469,
section 6.1), and a measure whose network has learned from the same pictures is flattered by it (arXiv 2310.14189, section 3.1).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from distill import losses
from distill.feature_maps import load_feature_maps
from distill.objectives.student import StudentConfig, StudentObjective, Teacher
from samplers.joint.sync import perceptual_distance
from samplers.path import NoiseLevel

if TYPE_CHECKING:
    from distill.data import Source


class RegressionConfig(StudentConfig):
    """distance: l2 (mean over pixels), pseudo_huber (of the whole image, constant huber_c) or huber (of each pixel). weight: of
    an error of x0 at a level (`distill.losses.level_weight`), at most max_weight. perceptual: what the distance between
    features of the pictures counts beside it; features: by which network (distill/feature_maps.py)."""

    distance: Literal["l2", "pseudo_huber", "huber"] = "l2"
    huber_c: float = Field(1e-3, gt=0)
    weight: losses.Weight = "truncated_snr"
    max_weight: float | None = Field(None, gt=0)
    perceptual: float = Field(0.0, ge=0)
    features: str = "evaluator"


class RegressionObjective(StudentObjective):
    """See the module."""

    config: Any

    def __init__(self, config: Any, network: nn.Module, source: Source | None = None, teacher: Teacher | None = None):
        super().__init__(config, network, source, teacher)
        if config.perceptual:
            self.check_pictures("leave perceptual out")
            self.maps = load_feature_maps(config.features)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Between images (B, ...), (B,)."""
        kind, c = self.config.distance, self.config.huber_c
        if kind == "l2":
            found = losses.squared(a, b)
        else:
            found = losses.pseudo_huber(a, b, c) if kind == "pseudo_huber" else losses.elementwise_huber(a, b, c)
        return found + self.config.perceptual * self.seen_distance(a, b) if self.config.perceptual else found

    def seen_distance(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,): how far the pictures of a and b are apart in features."""
        return perceptual_distance(lambda images: [x.float() for x in self.maps.see(images)], self.seen)(a, b)

    def average(self, error: Tensor, level: NoiseLevel) -> tuple[Tensor, dict[str, Tensor]]:
        """What `loss` returns for errors (B,) at their levels."""
        weight = losses.level_weight(self.config.weight, level, self.config.max_weight or math.inf)
        return losses.average(error, weight)
