"""Methods that tune a model by what people or rewards prefer: the student draws as its teacher does, and the teacher is the
reference that it starts from.

Unlike a student that takes guidance in, it is called under the teacher's classifier-free guidance, differentiably, and is
exported with it; one that receives the scale (`embed_guidance`, a few-step model as the teacher) gets the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.solver_steps import ddim
from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.student_sampling import sample_as_teacher, unit_noise
from distill.objectives.bases.teacher import Scale, predict_guided
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, drop_labels, knows_no_label
from gen.models.folder import Defaults
from samplers.denoiser import Condition, Context
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction


class PolicyConfig(StudentConfig):
    """steps: of the sampler that the student is tuned with and exported with; its guidance scale is the teacher's."""

    steps: int = Field(default=20, gt=0)


class PolicyObjective(StudentObjective):
    """See the module. Role `teacher` is the frozen reference."""

    config: Any

    # ---- the networks ----

    def predict(self, network: nn.Module, x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale = 1.0) -> Prediction:
        """What a network of the student's or the teacher's kind predicts as it is sampled, under guidance. Differentiable."""
        plain = unwrap(network)
        dtype = self.dtype if isinstance(plain, LoraNetwork) or plain is self.teacher.network else None
        denoiser = self.teacher.denoiser(network, dtype)
        if self.config.embed_guidance:
            return denoiser(x, level, self.with_guidance(condition, scale, x), Context())
        return predict_guided(denoiser, x, level, condition, scale, self.config.teacher.guidance_interval)

    @torch.no_grad()
    def reference(self, models: Mapping[str, nn.Module], x: Tensor, level: NoiseLevel, condition: Condition, scale: Scale):
        """The reference's prediction, without gradients."""
        return self.predict(models["teacher"], x, level, condition, scale)

    def training_scale(self) -> Scale:
        """The scale at which errors of denoising are compared: 1, or, of a network that receives one, that of its samples."""
        return self.config.default_guidance_scale if self.config.embed_guidance else 1.0

    # ---- the batch ----

    def clean(self, batch: Batch) -> Tensor:
        """As of any student; for prompts alone, of which pictures are only drawn, zeros of the model's size."""
        if batch.latents is not None or batch.images is not None:
            return super().clean(batch)
        return self.teacher.blank(batch)

    def in_groups(self, batch: Batch, size: int) -> Batch:
        """The batch with each `size` samples, one after another, of the prompt or class of the first of them."""
        if len(batch) % size:
            raise ValueError(
                f"{len(batch)} samples on a process do not split into groups of {size}; make batch_size such a multiple."
            )
        if batch.captions is not None:
            batch = replace(batch, captions=[batch.captions[i // size * size] for i in range(len(batch))])
        if batch.labels is not None:
            batch = replace(batch, labels=batch.labels[::size].repeat_interleave(size))
        return batch

    def condition_of(self, batch: Batch, draws: Draws, device: torch.device, group: int = 1) -> Condition:
        """What captions or labels say, without a share of the labels; those of a group go together."""
        share = self.config.drop_label if knows_no_label(self.teacher.network) else 0.0
        return self.condition(drop_labels(batch, share, draws, group), device)

    # ---- sampling ----

    def level(self, number: int, like: Tensor) -> NoiseLevel:
        """The level of a number of the student's grid, for each sample; `levels.steps` is the noisiest."""
        ladder = self.levels.to(like.device)
        return ladder[torch.full((len(like),), number, dtype=torch.int64, device=like.device)]

    def start(self, noise: Tensor) -> Tensor:
        """x at the noisiest level, from unit noise."""
        return expand(self.level(self.levels.steps, noise).sigma, noise) * noise

    def descend(
        self, network: nn.Module, x: Tensor, condition: Condition, scale: Scale, start: int | None = None, end: int = 0
    ) -> Tensor:
        """x at the level `end` from x at `start` (the noisiest where it is not given) by steps without noise (DDIM)."""
        for number in range(self.levels.steps if start is None else start, end, -1):
            s, t = self.level(number, x), self.level(number - 1, x)
            x = ddim(self.predict(network, x, s, condition, scale).x0, x, s, t)
        return x

    def defaults(self) -> Defaults:
        return super().defaults().model_copy(update={"guidance_scale": self.config.default_guidance_scale})

    @torch.no_grad()
    def teacher_sample(self, batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        like, scale = self.clean(batch), self.config.default_guidance_scale

        def predict(x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
            return self.predict(self.teacher.network, x, level, condition, scale)

        condition, noise = self.condition(batch, like.device), unit_noise(seeds, like)
        return self.render(sample_as_teacher(predict, self.path, self.config.teacher, noise, condition, steps))
