"""A discriminator on the frozen teacher's features, for methods of several kinds: its role, its loss and the student's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from distill.networks.discriminator import (
    Fooling,
    Noised,
    TokenHeads,
    allow_second_gradients,
    block_features,
    fooling_loss,
    tell_apart,
)
from distill.objectives.bases.student import Places, StudentObjective
from distill.parallel.shards import detached_weights
from distill.types import Role
from samplers.denoiser import Condition


class FeatureJudge(StudentObjective):
    """What a method with such a discriminator adds to its own. Its config has `blocks` and is an `AdversarialLossConfig`."""

    config: Any
    blocks: tuple[int, ...]

    def add_discriminator(self, places: Places) -> None:
        """The role `discriminator`: heads on the tokens after the config's blocks of the teacher, or else those of `places`."""
        self.blocks, widths = self.judged_blocks(self.config.blocks, places)
        self.roles["discriminator"] = Role(TokenHeads(widths), ema=False, second_order=self.config.penalised)
        if self.config.penalised:
            allow_second_gradients(self.teacher.network)

    def features(self, models: Mapping[str, nn.Module], noised: Noised, condition: Condition) -> list[Tensor]:
        """The frozen teacher's tokens for noised latents, differentiable in them."""
        denoiser = self.teacher.denoiser(models["teacher"], self.dtype)
        return block_features(denoiser, noised.x, noised.level, condition, self.blocks)

    def told_apart(
        self, models: Mapping[str, nn.Module], real: Noised, fake: Noised, condition: Condition
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, and what is logged."""
        return tell_apart(
            self.config, models["discriminator"], lambda noised: self.features(models, noised, condition), real, fake
        )

    def fooling(
        self,
        models: Mapping[str, nn.Module],
        real: Callable[[], Noised],
        fake: Noised,
        condition: Condition,
        own: Fooling = lambda logits: -logits.mean(),
    ) -> Tensor:
        """The student's adversarial loss for its samples. real: makes the data that they are compared with, in pairs. own: the
        method's loss of their logits where there are no pairs; of the hinge loss the student's half, unless said."""
        heads = detached_weights(models["discriminator"])
        return fooling_loss(self.config, heads, lambda noised: self.features(models, noised, condition), real, fake, own)
