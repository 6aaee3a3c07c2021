"""Teachers and students for tests of distillation: exact mixtures spoken by a network, and tiny backbones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.objective import Batch, Draws, Phase
from distill.objectives.student import StudentObjective, Teacher
from gen.components import build
from gen.model_folder import ModelConfig
from samplers.denoiser import CLOCKS, Context
from tests.gen.conftest import randomise
from tests.oracles import Gaussian, Mixture

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


def batch_of(count: int, first: int = 0, shape: tuple[int, ...] = SHAPE, labels: int = 3) -> Batch:
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(first, first + count)]
    index = torch.arange(first, first + count)
    return Batch(index=index, latents=torch.stack(rows).double(), labels=index % labels)


def loss_of(objective: StudentObjective, batch: Batch, step: int = 0, seed: int = 0) -> Tensor:
    models = {name: role.network for name, role in objective.roles.items()}
    return objective.loss(STUDENT, models, batch, Draws(seed, batch.index, "student"), step)[0]


class Source:
    def __init__(self, shape: tuple[int, ...] = (2, 4, 4)):
        self.shape = shape

    def __len__(self) -> int:
        return 1000

    def batch(self, counters) -> Batch:
        batch = batch_of(len(counters), counters[0], self.shape)
        batch.latents = batch.latents.float()
        return batch
