"""The ring of eight Gaussians in the plane as a training problem: an exact teacher, and one small student per seed, all trained
at once as an ensemble. Points are images of shape (2, 1, 1); row i of a batch belongs to seed i // (rows per seed)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from distill.objectives.bases.frozen_copies import frozen_copy
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.teacher import Teacher
from distill.types import Batch, Draws, Phase
from gen.models.folder import ModelConfig
from samplers.analytic import Mixture
from samplers.denoiser import Condition, Context
from samplers.noise import fold
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

SEEDS = 5
STD = 0.3  # of each Gaussian
RING = {"path": {"type": "rectified_flow"}, "prediction": "flow", "clock": "t"}


def ring_teacher(dtype: torch.dtype = torch.float32) -> Teacher:
    """Eight Gaussians on a circle of radius 2^(1/2), and what exactly is known of them."""
    model = ModelConfig.model_validate({**RING, "sample_size": 1})
    angle = torch.arange(8, dtype=dtype) * math.pi / 4
    means = 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1).reshape(8, 2, 1, 1)
    weights, stds = torch.full((8,), 1 / 8, dtype=dtype), torch.full((8, 2, 1, 1), STD, dtype=dtype)
    oracle = Mixture(model.path.build(), means, stds, weights, None, "flow")
    return Teacher(model, Oracle(oracle), name="ring")


class Oracle(nn.Module):
    """An exact denoiser as a network on the clock t."""

    def __init__(self, oracle: Mixture):
        super().__init__()
        self.oracle, self.config = oracle, type("Config", (), {"num_classes": 0})()

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        return self.oracle(x, self.oracle.path(time), condition, Context()).raw


class Ensemble(nn.Module):
    """SEEDS perceptrons side by side on (x, waves of the time, scalars that the condition tells)."""

    def __init__(self, width: int = 96, depth: int = 3, told: tuple[str, ...] = ()):
        super().__init__()
        self.told = told
        sizes = [2 + 8 * (1 + len(told)), *[width] * depth, 2]
        g = torch.Generator().manual_seed(0)
        self.weights = nn.ParameterList(
            torch.randn(SEEDS, a, b, generator=g) / a**0.5 * (1.0 if b > 2 else 0.1) for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(SEEDS, 1, b) for b in sizes[1:])

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        times = [time, *(condition.extra[name] for name in self.told)]
        h = torch.cat([x.flatten(1), *(waves(t.float()) for t in times)], 1).unflatten(0, (SEEDS, -1))
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, nn.functional.silu(h) if i else h, weight)
        return h.flatten(0, 1)[:, :, None, None]


class Corrected(nn.Module):
    """The teacher and an ensemble that corrects it, zero at the start."""

    def __init__(self, teacher: Teacher, width: int = 64):
        super().__init__()
        self.ensemble, self.oracle = Ensemble(width), teacher.network.oracle
        nn.init.zeros_(self.ensemble.weights[-1])

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        with torch.no_grad():
            base = self.oracle(x, self.oracle.path(time), condition, Context()).raw
        return base + self.ensemble(x, time, condition)


def waves(t: Tensor) -> Tensor:
    """(B,) in [0, 1] -> (B, 8)."""
    angle = t[:, None] * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
    return torch.cat([angle.sin(), angle.cos()], 1)


@dataclass(frozen=True)
class FastDraws(Draws):
    """One generator per purpose and batch rather than per row."""

    def normal(self, purpose, shape=(), device=None):
        return torch.randn((len(self.index), *shape), generator=self._generator(purpose))

    def uniform(self, purpose, shape=(), device=None):
        return torch.rand((len(self.index), *shape), generator=self._generator(purpose))

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(fold(self.seed, int(self.index[0]), self.phase, purpose))


def ring_batch(step: int, rows: int, teacher: Teacher) -> Batch:
    g, count = torch.Generator().manual_seed(fold(1, step)), SEEDS * rows
    means = teacher.network.oracle.means.float()[torch.randint(8, (count,), generator=g)]
    data = means + STD * torch.randn(count, 2, 1, 1, generator=g)
    return Batch(index=torch.arange(step * count, (step + 1) * count), latents=data)


def train(
    objective: Objective, lengths: Sequence[int], teacher: Teacher, role: str = "student", rows: int = 64
) -> list[nn.Module]:
    """Adam, its rate falling to nearly zero in each of the stages of these lengths; copies of the network after each."""
    lr, step, after = 3e-3, 0, []
    models: Mapping[str, nn.Module] = {name: role.network for name, role in objective.roles.items()}
    network = models[role]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99), foreach=True)
    for length in lengths:
        for i in range(length):
            batch = ring_batch(step, rows, teacher)
            optimizer.param_groups[0]["lr"] = lr * (0.02 + 0.98 * math.cos(math.pi / 2 * i / length) ** 2)
            loss, _ = objective.loss(Phase(role, role), models, batch, FastDraws(0, batch.index, role), step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            objective.after_step(step)
            step += 1
        after.append(frozen_copy(network).network)
    return after


def noise(rows: int = 500) -> Tensor:
    return torch.randn(SEEDS * rows, 2, 1, 1, generator=torch.Generator().manual_seed(99))


@torch.no_grad()
def run(network: nn.Module, teacher: Teacher, x: Tensor, steps: int, solver: str = "ddim") -> Tensor:
    """Where a network's sampler goes from noise x."""
    denoiser = teacher.model.denoiser(network)
    levels = get_grid("uniform", denoiser.path, steps)
    return sample(denoiser, get_solver(solver), x, levels, Condition()).float()


@torch.no_grad()
def exact_end(x: Tensor, start: float | None = None, count: int = 200) -> Tensor:
    """The ends of the probability-flow ODE from unit noise x, by Heun in float64; the trajectories begin at pure noise, or at
    the time `start`, from sigma x."""
    teacher = ring_teacher(torch.float64)
    if start is None:
        return run(teacher.network, teacher, x.double(), count, "heun")
    denoiser = teacher.model.denoiser(teacher.network)
    levels = [denoiser.path(start * (1 - i / count)) for i in range(count + 1)]
    return sample(denoiser, get_solver("heun"), x.double() * levels[0].sigma, levels, Condition()).float()


def rmse(out: Tensor, exact: Tensor) -> Tensor:
    """(SEEDS,): the distance of each seed's points from the exact ends of their trajectories."""
    return (out - exact).flatten(1).square().sum(1).unflatten(0, (SEEDS, -1)).mean(1).sqrt()


def sliced_wasserstein(a: Tensor, b: Tensor, slices: int = 64) -> Tensor:
    """(SEEDS,): the 2-Wasserstein distance of two sets of points, over directions in the plane."""
    angle = torch.arange(slices) * math.pi / slices
    directions = torch.stack([angle.cos(), angle.sin()])
    a, b = ((v.flatten(1).unflatten(0, (SEEDS, -1)) @ directions).sort(1).values for v in (a, b))
    return (a - b).square().mean((1, 2)).sqrt()
