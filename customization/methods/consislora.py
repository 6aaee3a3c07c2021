"""ConsisLoRA: content and style in two LoRAs, by a loss on the clean picture.

The loss of eps asks for small things at every noise level; that of x0 = (x - sigma eps) / alpha is sigma^2 / alpha^2 times as
large, so it counts the noisy levels, at which the form of a picture is decided:

    |x0_hat - x0|^2 = (sigma / alpha)^2 |eps_hat - eps|^2

A content LoRA is trained with the loss of eps first, then of x0 (`switch`). A style LoRA is trained with the loss of x0, while
the content LoRA of the same picture (`frozen`) acts and stays as it is, and learns what that one leaves. Loaded together, each
has its own weight; `samplers.composition.Contrast` gives each its own strength of guidance besides.

Source: arXiv 2503.10614.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from samplers.prediction import Prediction


class ConsistentConfig(CustomizationConfig):
    """switch: the step from which the loss is of x0 (0: always). frozen: a LoRA that acts in training and does not change, at
    frozen_weight."""

    switch: int = Field(default=500, ge=0)
    frozen: Path | None = None
    frozen_weight: float = Field(default=1.0, ge=-10, le=10)
    huber: None = None  # its losses are squares


class ConsistentObjective(CustomizationObjective):
    config: ConsistentConfig

    def attach(self) -> dict[str, nn.Parameter]:
        if self.config.frozen is not None:
            self.generator.load_adapter(self.config.frozen, name="frozen", weight=self.config.frozen_weight)
            self.generator.fuse_adapters()  # into the frozen weights, for all of the run
        return super().attach()

    def error(self, prediction: Prediction, x0: Tensor, eps: Tensor, step: int) -> Tensor:
        if step < self.config.switch:
            return (prediction.eps - eps).square()
        return (prediction.x0 - x0).square()  # arXiv 2503.10614, section 4.1: the loss on the clean picture
