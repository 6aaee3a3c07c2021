"""Pseudo-Huber losses, which grow like a distance where the square grows: few wrong pictures or captions then teach less.

Source: arXiv 2403.16728, whose parameter depends on the noise; which schedule is kohya's `snr`.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from gen.nn.registry import Config
from samplers.path import NoiseLevel, Scalar


class HuberConfig(Config):
    """c: errors below it count as their square, those above in proportion. schedule: constant, the same at all levels; or snr,
    c + (1 - c) / (1 + sigma / alpha)^2, so that clean pictures have nearly the square and noise the most protection."""

    c: float = Field(default=0.1, gt=0, le=1)
    schedule: Literal["constant", "snr"] = "snr"

    def at(self, level: NoiseLevel) -> Scalar:
        """The parameter at a level, a number or (B,)."""
        if self.schedule == "constant":
            return self.c
        # 1 / (1 + sigma / alpha) = alpha / (alpha + sigma), which pure noise does not make infinite
        return self.c + (1 - self.c) * (level.alpha / (level.alpha + level.sigma)) ** 2


def pseudo_huber_of(squared: Tensor, c: Tensor | float) -> Tensor:
    """2 c (sqrt(e^2 + c^2) - c) of squared errors e^2, which is e^2 for e far below c, and 2 c |e| far above it."""
    c = torch.as_tensor(c, dtype=squared.dtype, device=squared.device)
    return 2 * c * squared / ((squared + c**2).sqrt() + c)  # the difference of nearly equal numbers, by its conjugate
