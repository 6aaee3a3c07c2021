"""Teachers and students for tests of distillation: exact mixtures spoken by a network, and tiny backbones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.teacher import Teacher
from distill.types import Batch, Draws, Phase
from gen.models.folder import ModelConfig
from gen.nn.registry import build
from samplers.analytic import Gaussian, Mixture
from samplers.denoiser import CLOCKS, Condition, Context
from samplers.path import NoiseLevel
from samplers.prediction import prediction_row
from samplers.registry import get_solver
from samplers.sample import sample
from tests.gen.conftest import randomise

FLOW = {"type": "rectified_flow"}
VP = {"type": "variance_preserving", "betas": "cosine", "steps": 64}
STUDENT = Phase("student", "student")
SIZES = {"size": 4, "patch": 2, "channels": 2, "dim": 16, "depth": 3, "heads": 2, "num_classes": 3}
SHAPE = (2, 2, 2)


def model(path: dict[str, Any] = FLOW, prediction: str = "x0", size: int = 4) -> ModelConfig:
    clock = "t" if path["type"] == "rectified_flow" else "index"
    return ModelConfig.model_validate({"path": path, "prediction": prediction, "clock": clock, "sample_size": size})


class Exact(nn.Module):
    """An exact denoiser as a network: it reads the level off the clock that it is told."""

    def __init__(self, config: ModelConfig, oracle: Any):
        super().__init__()
        self.oracle, self.path, self.clock = oracle, config.path.build(), config.clock
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def level(self, time: Tensor) -> Any:
        time = time.double()
        return self.path(time if self.clock == "t" else (time + 1) / len(self.path.table))

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        level = self.level(time)
        torch.testing.assert_close(CLOCKS[self.clock](level, self.path), time.double())
        return self.oracle(x, level, condition, Context()).raw + self.zero


def exact_teacher(path: dict[str, Any] = FLOW, prediction: str = "x0", gaussian: bool = False) -> Teacher:
    """A labelled mixture in 2 x 2 x 2 dimensions, or one Gaussian, as a loaded model."""
    config = model(path, prediction, size=2)
    if gaussian:
        g = torch.Generator().manual_seed(5)
        mean, std = torch.randn(SHAPE, generator=g).double(), 0.3 + torch.rand(SHAPE, generator=g).double()
        oracle: Any = Gaussian(config.path.build(), mean, std, prediction)
    else:
        oracle = Mixture.example(config.path.build(), prediction, labelled=True, shape=SHAPE)
    network = Exact(config, oracle)
    network.config = type("Config", (), {"num_classes": 3})()
    return Teacher(config, network.eval().requires_grad_(False), name="exact")


def tiny_teacher(kind: str = "dit", path: dict[str, Any] = FLOW, prediction: str = "x0", seed: int = 1) -> Teacher:
    network = randomise(build({"type": kind, **SIZES}), seed)
    return Teacher(model(path, prediction), network.eval().requires_grad_(False), name="tiny")


class Jump(nn.Module):
    """The student that a method of this family converges to: from every level of a fine grid it goes where plain DDIM with the
    teacher's field leads, run by the sampler, down to the start of its segment of `length` steps.

    field: a denoiser. offset: the start that it aims at is off by so many levels (a wrong student). scaled: the output is
    (end - c_skip x) / c_out instead, for methods with boundary scalings, given as a function of a level.
    """

    def __init__(self, model: ModelConfig, field: Any, levels: Sequence[NoiseLevel], length: int, offset: int = 0, scaled=None):
        super().__init__()
        self.model, self.field, self.length, self.offset, self.scaled = model, field, length, offset, scaled
        self.path, self.levels = model.path.build(), list(levels)[::-1]  # from the cleanest
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context=None) -> Tensor:
        clock = time.double() if self.model.clock == "t" else (time.double() + 1) / len(self.path.table)
        rows = [self.row(x[i : i + 1], clock[i].item(), condition[i : i + 1]) for i in range(len(x))]
        return torch.cat(rows) + self.zero

    def row(self, x: Tensor, clock: float, condition: Condition) -> Tensor:
        index = min(range(len(self.levels)), key=lambda j: abs(self.levels[j].t - clock))
        level = self.levels[index]
        assert abs(level.t - clock) < 1e-9, "a network was called between the levels of the grid"
        start = (index - 1) // self.length * self.length + self.offset if index else 0
        if index <= start:
            x0 = self.field(x, level, condition, Context()).x0
        else:
            end = sample(self.field, get_solver("ddim"), x, self.levels[start : index + 1][::-1], condition)
            t, e = level, self.levels[start]
            if self.scaled is None:
                x0 = (end - e.sigma / t.sigma * x) / (e.alpha - t.alpha * e.sigma / t.sigma)
            else:
                c_skip, c_out = self.scaled(level)
                x0 = (end - c_skip * x) / c_out
        a, b = prediction_row(self.model.prediction, level, self.path)
        return a * x0 + b * (x - level.alpha * x0) / level.sigma if level.sigma else a * x0


def batch_of(count: int, first: int = 0, shape: tuple[int, ...] = SHAPE, labels: int = 3) -> Batch:
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(first, first + count)]
    index = torch.arange(first, first + count)
    return Batch(index=index, latents=torch.stack(rows).double(), labels=index % labels)


def latents(count: int = 4) -> Batch:
    """Of the tiny teachers' size, in float32."""
    batch = batch_of(count, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    return batch


def models_of(objective: StudentObjective) -> dict[str, nn.Module]:
    return {name: role.network for name, role in objective.roles.items()}


def loss_of(objective: StudentObjective, batch: Batch, step: int = 0, seed: int = 0) -> Tensor:
    return objective.loss(STUDENT, models_of(objective), batch, Draws(seed, batch.index, "student"), step)[0]


class Source:
    def __init__(self, shape: tuple[int, ...] = (2, 4, 4)):
        self.shape = shape

    def __len__(self) -> int:
        return 1000

    def batch(self, counters) -> Batch:
        rows = [batch_of(1, int(counter), self.shape) for counter in counters]
        index, latents, labels = (
            torch.cat(parts) for parts in zip(*((r.index, r.latents, r.labels) for r in rows), strict=True)
        )
        return Batch(index=index, latents=latents.float(), labels=labels)
