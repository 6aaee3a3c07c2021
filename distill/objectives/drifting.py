"""Drifting models: the student's pictures drift towards the data's and away from one another, and the student follows.

For every drawn picture a field says where it would go: to nearby pictures of the data of its condition (positive samples), away
from nearby drawings (negative ones). Swapping data and drawings turns the field round, so it is nothing where both are
distributed alike. There is no critic, no discriminator and nothing to run: the student's target is the picture where the field
takes it, in the features of frozen networks, as distances between plain pictures say little.

Guidance: pictures of other conditions are negatives too, with a weight, as if the student drew some of them; it comes to draw
scale p(x | c) - (scale - 1) p(x), which is more of its condition than the data are.

Source: arXiv 2602.04770; the field, its Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.alike import alike
from distill.losses.distances import squared
from distill.objectives.bases.representations import Representations
from distill.objectives.bases.student_rollout import RolloutConfig, RolloutObjective
from distill.types import Batch, Draws, Phase

LATENTS = "latents"


class DriftingConfig(RolloutConfig):
    """representations: `latents`, the pictures or latents themselves, and any of those of `frechet`; block, judged: of
    `teacher`, as there. temperatures: of the kernel exp(-distance / temperature), where the mean distance to the data is 1.
    guidance: the scale of guidance that the student is to have learned.

    Samples of one condition are compared: data of type `grouped` have groups of them in a batch.
    """

    representations: tuple[str, ...] = Field(default=("teacher",), min_length=1)
    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.02, 0.05, 0.2), min_length=1)
    guidance: float = Field(default=1.0, ge=1)
    block: int | None = Field(default=None, ge=0)
    judged: float = Field(default=-2.0, ge=-10, le=10)
    steps: int = Field(default=1, gt=0)
    noisiest_share: float = Field(default=1.0, ge=0, le=1)


class DriftingObjective(RolloutObjective):
    """See the module."""

    config: DriftingConfig
    source = "arXiv 2602.04770"

    def __init__(self, config: DriftingConfig, network: nn.Module, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        named = [name for name in config.representations if name != LATENTS]
        self.represent = Representations(self, named, config.block, config.judged)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.dropped(batch, draws)
        x0, real, condition, _ = self.rollout(models["student"], batch, draws)
        noise = draws.normal_like("noise", x0)
        drawn = self.represent(x0, condition, noise)
        with torch.no_grad():
            data = self.represent(real, condition, noise)
        if LATENTS in self.config.representations:
            drawn[LATENTS], data[LATENTS] = x0.flatten(1), real.flatten(1)
        same = alike(batch, len(batch), x0.device, self.reads_text)[0]
        losses, logged = [], {"compared": same.float().mean()}
        for name, features in drawn.items():
            loss, logged[f"drift_{name}"] = drifting_loss(
                features, data[name], same, self.config.temperatures, self.config.guidance
            )
            losses.append(loss)
        return torch.stack(losses).sum(), logged


def drifting_loss(
    drawn: Tensor, data: Tensor, same: Tensor, temperatures: Sequence[float], guidance: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(the mean squared distance from where the field takes the drawn features, the field's length before it is normalised).

    drawn, data: features (N, D). same (N, N): which rows have one condition; others are negatives, with a weight by the scale
    of guidance. temperatures: of the kernel, as shares of the mean distance.
    """
    with torch.no_grad():
        x, y = drawn.detach().double(), data.double()
        # arXiv 2602.04770, section A.6: a mean distance of sqrt(D), and temperatures times sqrt(D)
        size = (torch.cdist(x, y)[same].mean() / x.shape[1] ** 0.5).clamp(min=1e-6)
        x, y = x / size, y / size
        total, before = torch.zeros_like(x), []
        for temperature in temperatures:
            field = drift(x, y, same, temperature * x.shape[1] ** 0.5, guidance)
            length = field.square().mean().sqrt()
            before.append(length)
            total += field / length.clamp(min=1e-6)
    return squared(drawn / size, (drawn / size + total).detach()).mean(), torch.stack(before).mean().float()


def drift(x: Tensor, data: Tensor, same: Tensor, temperature: float, guidance: float = 1.0) -> Tensor:
    """The field V (N, D) at drawn samples x (N, D) among data (N, D): see `drifting_loss`. Algorithm 2 of the paper.

    A sample is not its own negative. With guidance w, data of other conditions are negatives that count as much together as
    (w - 1) / w of all.
    """
    own = torch.eye(len(x), dtype=torch.bool, device=x.device)
    to_data, to_drawn = -torch.cdist(x, data) / temperature, -torch.cdist(x, x) / temperature
    parts = [to_data.masked_fill(~same, -torch.inf), to_drawn.masked_fill(~same | own, -torch.inf)]
    if guidance > 1:
        drawn_count = (same & ~own).sum(1, keepdim=True).to(x)
        other_count = (~same).sum(1, keepdim=True).to(x)
        # N_neg drawings of weight 1 and N_other of weight w: w N_other / (w N_other + N_neg) = (scale - 1) / scale
        weight = (guidance - 1) * drawn_count / other_count.clamp(min=1)
        parts.append((to_data + weight.log()).masked_fill(same, -torch.inf))
    logits = torch.cat(parts, 1)
    rows = logits.softmax(1)
    columns = (logits - logits.logsumexp(0)).exp().nan_to_num()  # a column that nobody is compared with is empty
    affinity = (rows.nan_to_num() * columns).sqrt()
    positive, negative = affinity[:, : len(data)], affinity[:, len(data) :]
    towards = (positive * negative.sum(1, keepdim=True)) @ data
    negatives = torch.cat([x, data])[: negative.shape[1]]
    return towards - (negative * positive.sum(1, keepdim=True)) @ negatives
