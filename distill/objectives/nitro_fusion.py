"""NitroFusion: a student of one step, or a few, before a changing panel of many small discriminators.

Heads on the frozen teacher's features judge what the student draws beside what the teacher draws in many steps, both noised. A
step of the run looks at one noise level and asks a few heads of a large pool (`distill/networks/head_pool.py`): of whole
pictures and of places, with the condition and without it. A share of the pool begins anew at every step.

Source: arXiv 2412.02030. Its code for training is not published; which loss the heads have (here the hinge), and how many of a
kind a step asks, are ours. It starts from a student that draws in one step already (`init_from` with `start: network`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig
from distill.networks.discriminator import (
    Noised,
    allow_second_gradients,
    block_features,
    fooling_loss,
    quarter_blocks,
    tell_apart,
)
from distill.networks.head_pool import HeadPool
from distill.objectives.bases.student_rollout import RolloutConfig, RolloutObjective
from distill.objectives.bases.student_sampling import sample_as_teacher
from distill.objectives.bases.teacher import Scale
from distill.parallel.shards import detached_weights, unwrap
from distill.types import Batch, Draws, Phase, Role
from samplers.denoiser import Condition
from samplers.noise import fold
from samplers.path import NoiseLevel
from samplers.prediction import Prediction


class NitroFusionConfig(RolloutConfig, AdversarialLossConfig):
    """real: what stands for real: pictures that the guided teacher draws in teacher.steps steps, or the data's.

    blocks: those of the teacher whose tokens are read (none given: a quarter, half and three quarters of the way through, and
    the last; of a U-Net the levels on the way down and the middle). judged: the shares of the clock at which pictures are
    looked at. members: heads of one block, level and kind. asked: how many of these a step asks. refresh: the share of all
    heads that begins anew after a step. hidden: width of a head.
    """

    steps: int = Field(default=1, gt=0)
    real: Literal["teacher", "data"] = "teacher"
    blocks: tuple[int, ...] = ()
    judged: tuple[float, ...] = Field(default=(0.01, 0.25, 0.5, 0.75), min_length=1)
    members: int = Field(default=4, ge=1)
    asked: int = Field(default=1, ge=1)
    refresh: float = Field(default=0.01, ge=0, le=1)
    hidden: int = Field(default=64, gt=0)
    target_ema: None = None  # it has no target

    @model_validator(mode="after")
    def _pool(self) -> NitroFusionConfig:
        if not all(0 < share < 1 for share in self.judged):
            raise ValueError(f"judged {self.judged} must be shares of the clock above 0 (clean data) and below 1 (noise)")
        if self.asked > self.members:
            raise ValueError(f"asked {self.asked} is more than the {self.members} members that there are of each kind")
        return self


class NitroFusionObjective(RolloutObjective):
    """See the module. Roles `student` and `discriminator` train."""

    config: NitroFusionConfig
    source: ClassVar[str] = "arXiv 2412.02030"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.blocks, widths = self.judged_blocks(config.blocks, quarter_blocks)
        self.pool = HeadPool(widths, len(config.judged), config.members, config.hidden)
        self.roles["discriminator"] = Role(self.pool, ema=False, second_order=config.penalised)
        if config.penalised:
            allow_second_gradients(self.teacher.network)

    def clean(self, batch: Batch) -> Tensor:
        """As of any student; of prompts alone, where the teacher draws what stands for real, zeros."""
        reads_none = self.config.inputs == "simulated" and self.config.real == "teacher"
        if reads_none and batch.latents is None and batch.images is None:
            return self.teacher.blank(batch)
        return super().clean(batch)

    # ---- what is judged ----

    @torch.no_grad()
    def real(self, models: Mapping[str, nn.Module], data: Tensor, condition: Condition, scale: Scale, draws: Draws) -> Tensor:
        """Clean latents (B, C, h, w) that stand for real."""
        if self.config.real == "data":
            return data

        def predict(x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
            return self.teacher_predict(models, x, level, condition, scale)

        noise = draws.normal_like("teacher's eps", data)
        return sample_as_teacher(predict, self.path, self.config.teacher, noise, condition, self.config.teacher.steps)

    def shown(self, name: str, x0: Tensor, level: int, draws: Draws) -> Noised:
        """Clean latents as they are judged: at a level of the pool, with noise of their own."""
        at = self.path(torch.full((len(x0),), self.config.judged[level] * self.path.t_noise, device=x0.device).double())
        return Noised(at.mix(x0, draws.normal_like(name, x0)), at)

    def seen(self, models: Mapping[str, nn.Module], condition: Condition) -> Callable[[Noised], list[Tensor]]:
        """The teacher's tokens for noised latents: told the condition, and told none."""
        denoiser = self.teacher.denoiser(models["teacher"], self.dtype)

        def see(noised: Noised) -> list[Tensor]:
            given = (condition, condition.null())
            return [f for told in given for f in block_features(denoiser, noised.x, noised.level, told, self.blocks)]

        return see

    # ---- losses ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        level, asked = self.pool.asked(fold(draws.seed, "asked", step), self.config.asked)
        learns = phase.name == "student"
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            student = models["student"] if learns else unwrap(models["student"])
            x0, data, condition, scale = self.rollout(student, batch, draws)
        see, fake = self.seen(models, condition), self.shown("fake", x0, level, draws)

        def real() -> Noised:
            return self.shown("real", self.real(models, data, condition, scale, draws), level, draws)

        pool: Any = detached_weights(models["discriminator"]) if learns else models["discriminator"]

        def heads(features: list[Tensor]) -> Tensor:
            return pool(features, asked)

        if not learns:
            return tell_apart(self.config, heads, see, real(), fake)
        total = fooling_loss(self.config, heads, see, real, fake, lambda logits: -logits.mean())
        return total, {"adversarial": total.detach()}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.config.refresh:
            self.pool.refresh(step, self.config.refresh)
