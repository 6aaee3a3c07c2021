"""Denoisers for tests of canvases: one that looks at single pixels, whose canvas must be exact, and one that looks around."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers import Condition, Context, NoiseLevel
from samplers.analytic import predict_as
from samplers.path import Path, expand
from samplers.prediction import Prediction


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(x: Tensor, level: NoiseLevel) -> Tensor:
    """x scaled to unit variance: variance-preserving x."""
    return x / expand((level.alpha**2 + level.sigma**2) ** 0.5, x)


@dataclass(frozen=True)
class PerPixel:
    """x0 = tanh(2 x + label / 2): every pixel by itself, so that any windows give what the whole canvas gives."""

    path: Path
    kind: str = "eps"

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        context.count(len(x))
        label = 0.0 if condition.label is None else expand(condition.label, x)
        x0 = torch.tanh(2 * unit(x, level) + label / 2)
        return predict_as(self.kind, self.path, x, level, x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))


@dataclass(frozen=True)
class LookAround:
    """x0 = tanh(x + the window's mean + a ramp over the window + the image that the condition has there)."""

    path: Path
    kind: str = "flow"

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        context.count(len(x))
        ramp = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype) + torch.linspace(0, 1, x.shape[-2], dtype=x.dtype)[:, None]
        image = 0 if condition.image is None else condition.image
        label = 0.0 if condition.label is None else expand(condition.label, x)
        x0 = torch.tanh(unit(x, level) + 3 * x.mean((1, 2, 3), keepdim=True) + ramp + image + label)
        return predict_as(self.kind, self.path, x, level, x0, (x - expand(level.alpha, x) * x0) / expand(level.sigma, x))
