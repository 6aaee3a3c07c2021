"""Small denoisers in float64 for compositions: told by tokens (so that prompts have gradients) and by adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from samplers import Condition, RectifiedFlow, get_grid, get_solver, sample
from samplers.analytic import predict_as
from samplers.path import Path, expand
from samplers.prediction import Prediction

FLOW = RectifiedFlow()
SOLVERS = ("euler", "heun", "dpmpp_2m", "unipc")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompt(seed: int, batch: int = 1) -> Condition:
    """One prompt for all samples."""
    return Condition(tokens=rand(1, 1, 3, seed=100 + seed).expand(batch, -1, -1))


@dataclass(frozen=True)
class Toy:
    """x0 depends on a pixel's neighbourhood (reach 1) or the pixel alone (0), on the prompt and on the adapter "shift"."""

    reach: int = 1
    kind: str = "flow"
    path: Path = FLOW
    seed: int = 0
    calls: list = field(default_factory=list)

    def __call__(self, x, level, condition, context) -> Prediction:
        context.count(len(x))
        self.calls.append((len(x), context.branch, x))
        side = 2 * self.reach + 1
        mixed = torch.nn.functional.conv2d(x, 0.3 * rand(3, 3, side, side, seed=self.seed), padding=self.reach)
        told = condition.tokens.mean(1)[:, :, None, None] if condition.tokens is not None else 0.0
        if (time := condition.extra.get("target_time")) is not None:
            told = told + time[:, None, None, None]
        shift = _weights(context.adapters, len(x))[:, None, None, None]
        clock = expand(level.logsnr, x)
        x0 = torch.tanh(mixed * (1 + shift) + told * (1 + 0.1 * torch.tanh(torch.as_tensor(clock))) * (1 + mixed**2))
        eps = (x - expand(level.alpha, x) * x0) / expand(level.sigma, x)
        return predict_as(self.kind, self.path, x, level, x0, eps)


def _weights(adapters, rows: int) -> Tensor:
    if not isinstance(adapters, Mapping):
        return torch.tensor([adapters[i % len(adapters)].get("shift", 0.0) for i in range(rows)], dtype=torch.float64)
    one = torch.as_tensor(adapters.get("shift", 0.0), dtype=torch.float64)
    return one.expand(rows) if one.ndim == 0 else one.repeat(rows // len(one))


def run(denoiser, x: Tensor, solver: str = "dpmpp_2m", steps: int = 5, condition: Condition | None = None, context=None):
    """From a noisy start at a finite log-SNR, so that every kind of prediction is determined."""
    levels = get_grid("karras", denoiser.path, steps)
    return sample(denoiser, get_solver(solver), x * levels[0].sigma, levels, condition, context=context)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
