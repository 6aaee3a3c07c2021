"""A discriminator that is a denoiser's network of its own: it starts as the teacher's, and all of it trains.

What the network returns for a picture is read as a map of logits, by one layer on its channels. It judges by the picture, the
level that it is told, and the condition. With a LoRA student it is a LoRA too. Source: UFOGen, arXiv 2311.09257,
whose discriminator starts as the diffusion model with a new last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.networks.discriminator import (
    Noised,
    allow_second_gradients,
    fooling_loss,
    logistic_discriminator,
    non_saturating,
    start_weights,
    tell_apart,
)
from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_network import copy_weights, freeze_unread, like_teacher
from distill.parallel.shards import detached_weights
from distill.types import Role
from gen.models.folder import learns_variance
from samplers.denoiser import Condition, Context


class JudgingNetwork(nn.Module):
    """A denoiser's network that judges: called as that is, it returns logits (B, H W), above 0 for real.

    channels: of what the network returns.
    """

    def __init__(self, network: nn.Module, channels: int):
        super().__init__()
        self.network, self.read = network, nn.Conv2d(channels, 1, 1)
        start_weights(self.read)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
        raw = self.network(x, time, condition, context)
        return self.read(raw.to(self.read.weight.dtype)).flatten(1).float()


class NetworkJudge(StudentObjective):
    """What a method with such a discriminator adds to its own. Its config is an `AdversarialLossConfig`."""

    config: Any

    def add_discriminator(self) -> None:
        """The role `discriminator`."""
        teacher: Any = self.teacher.network
        if self.config.lora is not None:
            network: nn.Module = LoraNetwork(teacher, self.config.lora)
        else:
            network = like_teacher(self.teacher, ())
            copy_weights(teacher, network)
            freeze_unread(network)
        if self.config.penalised:
            allow_second_gradients(network)
        channels = teacher.config.channels * (2 if learns_variance(teacher) else 1)
        judge = JudgingNetwork(network, channels)
        self.roles["discriminator"] = Role(judge, ema=False, second_order=self.config.penalised)

    def judge(self, discriminator: Callable[..., Tensor], condition: Condition, count: int) -> Callable[[list[Tensor]], Tensor]:
        """The discriminator on [x, the clock of the level that it is told], of a batch of `count` samples, or of two such
        batches of the same conditions, one after the other."""

        def judged(seen: list[Tensor]) -> Tensor:
            x, clock = seen
            found: list[Tensor] = []

            def network(scaled: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
                found.append(discriminator(scaled, time, condition, context))
                return x

            told = condition.map(lambda value: torch.cat([value] * (len(x) // count)))
            dtype = self.dtype if self.config.lora is not None else None
            self.teacher.denoiser(network, dtype)(x, self.path(clock), told, Context())  # type: ignore[arg-type]
            return found[0]

        return judged

    @staticmethod
    def seen(noised: Noised) -> list[Tensor]:
        """What the discriminator is given of samples."""
        return [noised.x, noised.level.t]

    def told_apart(
        self, models: Mapping[str, nn.Module], real: Noised, fake: Noised, condition: Condition
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and what is logged."""
        judge = self.judge(models["discriminator"], condition, len(real.x))
        return tell_apart(self.config, judge, self.seen, real, fake, logistic_discriminator)

    def fooling(
        self, models: Mapping[str, nn.Module], real: Callable[[], Noised], fake: Noised, condition: Condition
    ) -> Tensor:
        """The student's adversarial loss for its samples. real: makes what they are compared with, in pairs."""
        judge = self.judge(detached_weights(models["discriminator"]), condition, len(fake.x))
        return fooling_loss(self.config, judge, self.seen, real, fake, non_saturating)
