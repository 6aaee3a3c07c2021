"""Small training problems: a perceptron regressing random linear targets, and a pair of networks against one another."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from distill.config import TrainConfig
from distill.objectives.bases.objective import Objective
from distill.trainer import Trainer
from distill.types import Batch, Role

BASE = {
    "objective": {"type": "toy"},
    "network": {"type": "toy"},
    "data": {"type": "toy"},
    "max_steps": 12,
    "batch_size": 8,
    "precision": "fp32",
    "device": "cpu",
    "checkpoint_every": 5,
    "log_every": 3,
    "optimizer": {"type": "muon", "lr": 1e-2, "muon_lr": 1e-2},
    "schedule": {"warmup": 2, "cooldown": 0.3},
    "ema": {"decay": 0.9},
}


class ToySource:
    """Sample i is a fixed vector of its own; remembers which counters it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def batch(self, counters) -> Batch:
        self.asked += list(counters)
        rows = [torch.randn(6, generator=torch.Generator().manual_seed(1000 + i)) for i in counters]
        return Batch(index=torch.tensor(list(counters)), images=torch.stack(rows))


class ToyObjective(Objective):
    def __init__(self, network: nn.Module, fail_at: int = -1, delay: float = 0.0):
        self.roles = {"net": Role(network)}
        self.fail_at, self.delay, self.exported = fail_at, delay, False

    def loss(self, phase, models, batch, draws, step):
        time.sleep(self.delay)
        x = batch.images + 0.1 * draws.normal("noise", (6,))
        target = batch.images.sum(1, keepdim=True)
        error = (models["net"](x) - target).square().mean()
        return (error * float("nan") if step == self.fail_at else error), {"error": error.detach()}

    def export(self, models, folder) -> None:
        self.exported = True


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 16), nn.Linear(16, 16)])
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)


def toy_trainer(output: Path, fail_at: int = -1, delay: float = 0.0, **changes) -> Trainer:
    torch.manual_seed(0)
    config = TrainConfig(**{**BASE, "output": output, **changes})
    return Trainer(config, ToyObjective(Net(), fail_at, delay), ToySource())


class DuelObjective(Objective):
    """Two networks that train against one another, and a fixed one."""

    def __init__(self, generator: nn.Module, critic: nn.Module, teacher: nn.Module):
        self.roles = {"generator": Role(generator), "critic": Role(critic, ema=False), "teacher": Role(teacher, False, False)}
        self.updates: list[tuple[int, str]] = []

    def loss(self, phase, models, batch, draws, step):
        self.updates.append((step, phase.name))
        made = models["generator"](batch.images + 0.1 * draws.normal("noise", (6,)))
        with torch.no_grad():
            real = models["teacher"](batch.images)
        if phase.name == "critic":
            return (models["critic"](made.detach()).square() + (models["critic"](real) - 1).square()).mean(), {}
        return (made - real).square().mean() - 0.1 * models["critic"](made).mean(), {}

    def export(self, models, folder) -> None:
        self.exported = dict(models)


def duel_trainer(output: Path, objective: type = DuelObjective, **changes) -> Trainer:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    duel = objective(Net(), critic, Net().requires_grad_(False))
    settings = {**BASE, "output": output, "optimizer": {"lr": 1e-2}, **changes}
    return Trainer(TrainConfig(**settings), duel, ToySource())
