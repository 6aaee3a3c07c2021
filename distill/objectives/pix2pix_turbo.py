"""pix2pix-Turbo: one step of a one-step model from a picture to the one that it is paired with (arXiv 2403.12036, section 3.4).

Loss, of every direction: |y - x|^2 and |y - x|, the distance of both in features (LPIPS where its weights are given), how well
the picture fits its prompt by a reward such as CLIP, and the judgement of a discriminator. With `stochastic`, a share of the
samples has a strength r below 1, for which what is to be the target's counts r of its weight: at r = 0 the model is what it
was before, and need not make the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.pictures import gradient_difference, within_white
from distill.objectives.bases.rewarded import RewardTerm, prompts_of, score_pictures
from distill.objectives.bases.translation import Side, TranslationConfig, TranslationObjective
from distill.types import Batch, Draws, Phase
from gen.models.translation.network import TranslationJob
from gen.rewards import get_reward
from samplers.path import expand


class Pix2PixTurboConfig(TranslationConfig):
    """l2, l1, gradient, perceptual: weights of the squared and absolute difference, of that of neighbouring pixels'
    differences, and of the distance in features. reward: of `gen.rewards`, with its weight. stochastic: share of the samples
    whose strength is drawn from [0, 1]."""

    l2: float = Field(default=1.0, ge=0)
    l1: float = Field(default=0.0, ge=0)
    gradient: float = Field(default=0.0, ge=0)
    perceptual: float = Field(default=5.0, ge=0)
    reward: RewardTerm | None = None
    stochastic: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _has_a_target(self) -> Pix2PixTurboConfig:
        if not (self.l2 or self.l1 or self.gradient or self.perceptual):
            raise ValueError("l2, l1, gradient and perceptual are all 0, so nothing leads to the paired picture; give one")
        return self


class Pix2PixTurboObjective(TranslationObjective):
    """See the module."""

    config: Pix2PixTurboConfig

    def __init__(self, config: Pix2PixTurboConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        self.compares = config.perceptual > 0
        super().__init__(config, network, source, teacher)
        term = config.reward
        self.reward = None if term is None else (term.weight, get_reward(term.type, **term.options))

    def jobs(self, batch: Batch, sides: list[Side], draws: Draws) -> list[TranslationJob]:
        if not self.config.stochastic:
            return super().jobs(batch, sides, draws)
        device, side = sides[0].given.device, sides[0].given.shape[-2:]
        free = draws.uniform("free", device=device) < self.config.stochastic
        strength = torch.where(free, draws.uniform("strength", device=device), 1.0)
        factor, channels = self.teacher.autoencoder.factor, self.teacher.network.config.channels
        noise = draws.normal("noise", (channels, side[0] // factor, side[1] // factor), device)
        return [replace(job, strength=strength, noise=noise) for job in super().jobs(batch, sides, draws)]

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.role != "translator":
            return self.telling(phase, models, batch, draws, step)
        sides = self.sides(batch, draws)
        jobs = self.jobs(batch, sides, draws)
        made = [picture for picture, *_ in models["translator"](*jobs)]
        self.keep(batch, step, made)
        total = made[0].new_zeros(())
        logs: dict[str, Tensor] = {}
        for side, job, picture in zip(sides, jobs, made, strict=True):
            loss, parts = self.side_loss(models, batch, side, job, picture, step)
            total = total + loss
            logs |= {f"{side.direction.name}_{name}": value.detach() for name, value in parts.items()}
        return total, logs

    def side_loss(
        self, models: Mapping[str, nn.Module], batch: Batch, side: Side, job: TranslationJob, made: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one direction, and its parts."""
        config, wanted = self.config, side.wanted
        shown = within_white(made, wanted)
        error = shown - wanted
        parts = {"l2": error.square().flatten(1).mean(1), "l1": error.abs().flatten(1).mean(1)}
        if config.perceptual:
            parts["perceptual"] = self.distance(made.clamp(-1, 1), wanted)
        found = {name: (value * job.strength).mean() for name, value in parts.items()}
        if config.gradient:
            share = expand(job.strength, shown)
            found["gradient"] = gradient_difference(share * shown, share * wanted)
        total = sum(getattr(config, name) * value for name, value in found.items())
        if self.reward is not None:
            found["reward"] = score_pictures(lambda x: x, [self.reward], made, prompts_of(batch)).mean()
            total = total - found["reward"]
        if self.heeds_judges(step):
            found["adversarial"] = self.fooling(models, side, made)
            total = total + config.adversarial_weight * found["adversarial"]
        assert isinstance(total, Tensor)
        return total, found
