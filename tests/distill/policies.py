"""Small policies for tests of rewards and preferences: exact in float64, in latents of a few numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.objectives.bases.teacher import Teacher
from gen.models.folder import ModelConfig
from tests.distill.students import FLOW, model


class Affine(nn.Module):
    """x0 = a + b x with two parameters, b x without a label, whatever the level: the smallest policy, float64."""

    def __init__(self, config: ModelConfig, a: float = 0.3, b: float = 0.2):
        super().__init__()
        self.path, self.clock = config.path.build(), config.clock
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, b))
        self.config = type("Config", (), {"num_classes": 3, "channels": 2, "patch": 1})()

    def forward(self, x: Tensor, time: Tensor, condition: Any, context: Any = None) -> Tensor:
        told = (condition.label >= 0).to(x).view(-1, 1, 1, 1)
        return self.a * told + self.b * x


def affine_teacher(path: dict[str, Any] = FLOW, a: float = 0.3, b: float = 0.2) -> Teacher:
    config = model(path, "x0", size=2)
    return Teacher(config, Affine(config, a, b).eval().requires_grad_(False), name="affine")


def policy(kind: Any, settings: Any, of: Teacher | None = None, network: nn.Module | None = None, **config: Any) -> Any:
    """An objective of a class and its config's class, on the affine teacher or another, whose latents are the pictures."""
    teacher = of or affine_teacher()
    network = network or Affine(teacher.model)
    teacher.check_draws_pictures = lambda instead: None  # two channels stand for three
    given = {"start": "network", "drop_label": 0.0, **config}
    objective = kind(settings(**given), network, None, teacher)
    objective.decode = lambda x0: x0
    return objective


def quadratic(images: Tensor, prompts: Any) -> Tensor:
    """A reward: -|picture - 0.6|^2."""
    return -(images - 0.6).square().flatten(1).sum(1)


def gradients(objective: Any, loss: Tensor) -> list[float]:
    student = objective.roles["student"].network
    return [value.item() for value in torch.autograd.grad(loss, [student.a, student.b])]


def differences(objective: Any, value: Any, h: float = 1e-5) -> list[float]:
    """Central differences of value() in the student's two parameters."""
    found = []
    for parameter in objective.roles["student"].network.parameters():
        with torch.no_grad():
            ends = []
            for shift in (h, -2 * h):
                parameter += shift
                ends.append(float(value()))
            parameter += h
        found.append((ends[0] - ends[1]) / (2 * h))
    return found
