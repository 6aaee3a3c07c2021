"""A distance as people see it, for methods that draw the student's clean image to a target: in features of the pictures.

With weights of LPIPS (features: lpips:FILE) it is LPIPS, arXiv 1801.03924; with any other network of pictures it is its
equation 1 with all channels alike. Consistency models gain much by it (arXiv 2303.01469, section 6.1), and a measure whose
network has learned from the same pictures is flattered by it (arXiv 2310.14189, section 3.1).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from distill.networks.feature_maps import load_feature_maps, picture_distance
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig


class PerceptualConfig(StudentConfig):
    """distance: subclasses say which there are; perceptual is that of features alone. perceptual: what the distance between
    features counts beside another. features: by which network (distill/networks/feature_maps.py)."""

    distance: str = "perceptual"
    perceptual: float = Field(default=0.0, ge=0)
    features: str = "evaluator"


class PerceptualObjective(StudentObjective):
    """See the module."""

    config: Any

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        if config.perceptual or config.distance == "perceptual":
            self.teacher.check_draws_pictures("leave perceptual out")
            self.maps: Any = load_feature_maps(config.features)

    def beside(self, found: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        """(B,): a distance between clean images a and b with that of features beside it; None: the latter alone."""
        if found is None:
            return self.perceptual_error(a, b)
        return found + self.config.perceptual * self.perceptual_error(a, b) if self.config.perceptual else found

    def perceptual_error(self, a: Tensor, b: Tensor) -> Tensor:
        """(B,): how far the pictures of a and b are apart in features."""
        return picture_distance(self.maps, self.decode(a), self.decode(b))
