"""Generative sliced MMD flows: drawn pictures flow to the data's distribution, and the student learns to draw where they end.

The flow follows the gradient of the maximum mean discrepancy by the Riesz kernel, exact on random lines
(distill/losses/sliced.py): no kernel width, no discriminator, no critic. `flow_steps` steps of it, with momentum, take a batch
of drawings to their targets; the student's next drawings begin there. The paper trains one network after another so; here one
network goes on.

The condition of a picture is part of it: pictures are compared with their label, or the mean of their text's tokens, appended,
and the flow leaves that part alone. So the joint distributions are to agree, and with them the conditional ones.

Sources: arXiv 2305.11463; the joint distribution, arXiv 2310.03054.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.losses.distances import along
from distill.losses.sliced import sliced_gradient
from distill.objectives.bases.student_rollout import RolloutConfig, RolloutObjective
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition


class SlicedFlowConfig(RolloutConfig):
    """flow_steps, flow_rate, momentum: of the flow from drawings to targets; a step is flow_rate times the gradient, each of
    whose two terms is at most about 1 long. slices: directions for each sample of a batch. condition_weight: how much
    conditions count beside pictures, both of which have numbers of about 1; 0: they are not compared.
    """

    flow_steps: int = Field(default=1, gt=0, le=1000)
    flow_rate: float = Field(default=1.0, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    slices: int = Field(default=8, gt=0)
    condition_weight: float = Field(default=1.0, ge=0)
    steps: int = Field(default=1, gt=0)
    noisiest_share: float = Field(default=1.0, ge=0, le=1)


class SlicedFlowObjective(RolloutObjective):
    """See the module."""

    config: SlicedFlowConfig
    source = "arXiv 2305.11463"

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        x0, real, condition, _ = self.rollout(models["student"], batch, draws)
        with torch.no_grad():
            direction = self.flowed(x0.detach(), real, condition, draws)
        return along(x0, direction).mean(), {"flow": direction.square().mean().sqrt()}

    def flowed(self, x0: Tensor, real: Tensor, condition: Condition, draws: Draws) -> Tensor:
        """How far the flow takes each picture (B, ...), turned round."""
        config, size = self.config, x0[0].numel()
        told = self.told(condition, len(x0)).to(real.flatten(1).double())
        data, points = torch.cat([real.flatten(1).double(), told], 1), torch.cat([x0.flatten(1).double(), told], 1)
        first, speed = points, torch.zeros_like(points)
        for number in range(config.flow_steps):
            drawn = draws.normal(f"slices {number}", (config.slices, points.shape[1]), x0.device).flatten(0, 1).double()
            gradient = sliced_gradient(points, data, drawn)
            gradient[:, size:] = 0  # a picture keeps its condition
            speed = config.momentum * speed + gradient
            points = points - config.flow_rate * speed
        return (first - points)[:, :size].view_as(x0).to(x0)

    def told(self, condition: Condition, count: int) -> Tensor:
        """(B, K): the conditions as numbers."""
        weight = self.config.condition_weight
        if not weight or (condition.label is None and condition.tokens is None):
            return torch.zeros(count, 0)
        if condition.label is not None:
            classes = self.teacher.network.config.num_classes  # type: ignore[union-attr]
            return weight * F.one_hot(condition.label.long() % (classes + 1), classes + 1).double()  # the last is no label
        assert condition.tokens is not None  # without a label either, there is nothing to tell
        tokens = condition.tokens.double()
        kept = torch.ones_like(tokens[..., 0]) if condition.mask is None else condition.mask.double()
        return weight * (tokens * kept[..., None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
