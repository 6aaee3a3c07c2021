"""Denoising diffusion GANs: a few large steps, each drawn by a generator that a discriminator of steps has taught.

Between two far levels the distribution of x_t given x_s is no Gaussian. The generator draws a clean image from x_s and noise z
of its own, and x_t from the Gaussian posterior of the noising process between the two; the discriminator sees (x_t, x_s) and is
to tell such pairs from those of noised data. At the optimum x_t is distributed as the data's given x_s: by z, one x_s has many
outcomes, where a denoiser has their mean.

Source: arXiv 2112.07804, section 3.2; the penalty in one of several steps, which is not multiplied by their number, its
repository NVlabs/denoising-diffusion-gan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import transitions
from distill.losses.adversarial import AdversarialLossConfig
from distill.losses.levels import draw_index
from distill.networks.discriminator import (
    Noised,
    fooling_loss,
    logistic_discriminator,
    non_saturating,
    prompt_vector,
    tell_apart,
)
from distill.networks.transition_discriminator import TransitionDiscriminator
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import UnguidedConfig
from distill.parallel.shards import detached_weights, unwrap
from distill.types import Batch, Draws, Phase, Role
from gen.nn.backbones.extra_scalars import LATENT_DIM
from samplers.denoiser import Condition
from samplers.path import NoiseLevel


class DenoisingDiffusionGanConfig(UnguidedConfig, AdversarialLossConfig):
    """steps: T, of which the last ends at clean data; training is at these levels only.

    latent: the generator receives noise z beside x_s (`scalars: [latent]` of its network). Without it a step is a Gaussian, as
    in the paper's ablation; a LoRA, which has no input for it, must do so.
    gradient_penalties: R1 alone as published. penalty_every: in one of so many steps, not multiplied by their number.
    widths: of the discriminator's blocks.
    """

    latent: bool = True
    gradient_penalties: tuple[float, float] = (0.02, 0.0)
    penalty_every: int = Field(default=15, ge=1)
    widths: tuple[int, ...] = Field(default=(64, 128, 256), min_length=2)
    target_ema: None = None  # it has no target

    @model_validator(mode="after")
    def _inputs(self) -> DenoisingDiffusionGanConfig:
        if self.lora is not None and self.latent:
            raise ValueError("a LoRA has no input for the generator's noise: set latent to false, or leave lora out")
        return self


class Transition(NamedTuple):
    """A step of noised data: from x_s at the level s (noisier) to x_t at t, each (B, C, H, W), and the condition."""

    x_s: Tensor
    x_t: Tensor
    s: NoiseLevel
    t: NoiseLevel
    condition: Condition


class DenoisingDiffusionGanObjective(StudentObjective):
    """See the module. Roles `student` and `discriminator` train."""

    config: DenoisingDiffusionGanConfig
    sampler = "ddpm"
    source: ClassVar[str] = "arXiv 2112.07804"

    def __init__(self, config, network, source=None, teacher=None):
        self.scalars = ("latent",) if config.latent else ()  # type: ignore[misc]
        super().__init__(config, network, source, teacher)
        self.check_told_latent()
        self.sampler_options = {"latent": LATENT_DIM} if config.latent else {}
        prompt = prompt_vector(self.teacher.empty_condition())
        sizes: Any = self.teacher.network.config
        discriminator = TransitionDiscriminator(
            sizes.channels, config.widths, getattr(sizes, "num_classes", 0), 0 if prompt is None else prompt.shape[1]
        )
        self.roles["discriminator"] = Role(discriminator, ema=False, second_order=config.penalised)
        self.without_penalties = config.model_copy(update={"gradient_penalties": (0.0, 0.0)})

    def check_told_latent(self) -> None:
        """ValueError where the student's network and `latent` disagree."""
        scalars = getattr(getattr(self.roles["student"].network, "config", None), "scalars", None)
        if scalars is not None and ("latent" in scalars) != self.config.latent:
            raise ValueError(
                f"latent is {str(self.config.latent).lower()}, but the student's network "
                f"{'receives' if 'latent' in scalars else 'does not receive'} noise of its own; set network.scalars to "
                f"{'[latent]' if self.config.latent else '[]'}, or latent to {str('latent' in scalars).lower()}."
            )

    # ---- steps ----

    def transition(self, batch: Batch, draws: Draws) -> Transition:
        """A step of noised data, at one of the T places for each sample: x_t of the data, and x_s of x_t."""
        x0 = self.clean(batch)
        ladder = self.levels.to(x0.device)
        number = 1 + draw_index(draws, "step", ladder.steps, x0.device)
        s, t = ladder[number], ladder[number - 1]
        x_t = t.mix(x0, draws.normal_like("eps", x0))
        x_s = transitions.drawn(*transitions.noising(x_t, t, s), draws.normal_like("noise", x0))
        return Transition(x_s, x_t, s, t, self.condition(batch, x0.device, draws))

    def step(self, student: nn.Module, at: Transition, draws: Draws) -> Tensor:
        """x_t as the generator draws it from x_s, differentiable."""
        x0 = self.generate(student, at.x_s, at.s, at.condition, draws)
        # arXiv 2112.07804, section 3.2: the posterior of the noising process, given the drawn x0
        posterior = transitions.ddim(x0, at.x_s, at.s, at.t, eta=1.0)
        return transitions.sampled(*posterior, draws.normal_like("posterior", x0))

    def generate(self, student: nn.Module, x: Tensor, level: NoiseLevel, condition: Condition, draws: Draws) -> Tensor:
        """x0 = G(x, z, s), differentiable."""
        if self.config.latent:
            latent = draws.normal("latent", (LATENT_DIM,), x.device).to(x)
            condition = replace(condition, extra={**condition.extra, "latent": latent})
        return self.predict(student, x, level, condition).x0

    # ---- losses ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        at = self.transition(batch, draws)
        real = Noised(at.x_t, at.t)
        if phase.name == "discriminator":
            with torch.no_grad():
                fake = Noised(self.step(unwrap(models["student"]), at, draws), at.t)
            penalised = step % self.config.penalty_every == 0
            config = self.config if penalised else self.without_penalties
            judge = self.judge(models["discriminator"], at)
            return tell_apart(config, judge, self.seen(at), real, fake, logistic_discriminator)
        fake = Noised(self.step(models["student"], at, draws), at.t)
        judge = self.judge(detached_weights(models["discriminator"]), at)
        total = fooling_loss(self.config, judge, self.seen(at), lambda: real, fake, non_saturating)
        return total, {"adversarial": total.detach()}

    def seen(self, at: Transition) -> Callable[[Noised], list[Tensor]]:
        """What the discriminator is given of a sample x_t: it, x_s, and s as a share of the clock."""
        clock = (at.s.t / self.path.t_noise).to(at.x_s)
        return lambda noised: [noised.x, at.x_s, clock]

    def judge(self, discriminator: Callable[..., Tensor], at: Transition) -> Callable[[list[Tensor]], Tensor]:
        """The discriminator on what is seen of a batch, or of two of the same conditions, one after the other."""

        def judged(seen: list[Tensor]) -> Tensor:
            times = len(seen[0]) // len(at.x_s)
            return discriminator(*seen, at.condition.map(lambda value: torch.cat([value] * times)))

        return judged
