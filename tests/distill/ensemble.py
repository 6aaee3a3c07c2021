"""The ring of eight Gaussians in the plane as a training problem: an exact teacher, and one small student per seed, all trained at
once as an ensemble. Points are images of shape (2, 1, 1); row i of a batch belongs to seed i // (rows per seed)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.objective import Batch, Draws, Phase
from distill.objectives.student import StudentObjective, Teacher
from gen.model_folder import ModelConfig
from samplers.denoiser import Condition, Context
from samplers.noise import fold
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.oracles import Mixture

SEEDS = 5
RING = {"path": {"type": "rectified_flow"}, "prediction": "flow", "clock": "t"}


def ring_teacher(dtype: torch.dtype = torch.float32) -> Teacher:
    """Eight Gaussians of standard deviation 0.1 on a circle of radius 2^(1/2)."""
    model = ModelConfig.model_validate({**RING, "sample_size": 1})
    angle = torch.arange(8, dtype=dtype) * math.pi / 4
    means = 2**0.5 * torch.stack([angle.cos(), angle.sin()], 1).reshape(8, 2, 1, 1)
    weights, stds = torch.full((8,), 1 / 8, dtype=dtype), torch.full((8, 2, 1, 1), 0.1, dtype=dtype)
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
            torch.randn(SEEDS, a, b, generator=g) / a**0.5 * (1.0 if b > 2 else 0.1)
            for a, b in zip(sizes, sizes[1:], strict=False)
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
    data = means + 0.1 * torch.randn(count, 2, 1, 1, generator=g)
    return Batch(index=torch.arange(step * count, (step + 1) * count), latents=data)


def train(objective: StudentObjective, steps: int, rows: int = 128, lr: float = 3e-3, stages: int = 1) -> None:
    """Adam, the rate falling to zero in each of `stages` equal parts."""
    models: Mapping[str, nn.Module] = {name: role.network for name, role in objective.roles.items()}
    optimizer = torch.optim.Adam(models["student"].parameters(), lr=lr, betas=(0.9, 0.99), foreach=True)
    phase, length = Phase("student", "student"), steps // stages
    for step in range(steps):
        batch = ring_batch(step, rows, objective.given)
        optimizer.param_groups[0]["lr"] = lr * (0.02 + 0.98 * math.cos(math.pi / 2 * (step % length) / length) ** 2)
        loss, _ = objective.loss(phase, models, batch, FastDraws(0, batch.index, "student"), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(step)


def noise(rows: int = 1000) -> Tensor:
    return torch.randn(SEEDS * rows, 2, 1, 1, generator=torch.Generator().manual_seed(99))


def teacher_sample(teacher: Teacher, x: Tensor, steps: int, solver: str = "ddim") -> Tensor:
    oracle = teacher.network.oracle
    levels = get_grid("uniform", oracle.path, steps)
    return sample(oracle, get_solver(solver), x.to(oracle.means) * levels[0].sigma, levels, Condition()).float()


def rmse(out: Tensor, exact: Tensor) -> Tensor:
    """(SEEDS,): the distance of each seed's points from the exact ends of their trajectories."""
    return (out - exact).flatten(1).square().sum(1).unflatten(0, (SEEDS, -1)).mean(1).sqrt()


def sliced_wasserstein(a: Tensor, b: Tensor, slices: int = 64) -> Tensor:
    """(SEEDS,): the 2-Wasserstein distance of two sets of points, over directions in the plane."""
    angle = torch.arange(slices) * math.pi / slices
    directions = torch.stack([angle.cos(), angle.sin()])
    a, b = ((v.flatten(1).unflatten(0, (SEEDS, -1)) @ directions).sort(1).values for v in (a, b))
    return (a - b).square().mean((1, 2)).sqrt()
