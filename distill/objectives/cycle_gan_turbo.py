"""CycleGAN-Turbo: one step of a one-step model between two kinds of pictures of which none are paired (arXiv 2403.12036,
section 3.3), and CUT's contrast between a picture and what it becomes (arXiv 2007.15651).

One denoiser goes both ways, told apart by its prompts; the autoencoder's changes and skip connections are each direction's own.
Loss: there and back again gives the picture that it was (cycle), a picture that is of the wanted kind stays as it is
(identity), both in absolute difference and in features; a discriminator for each kind; and, with `contrastive`, PatchNCE on
what the direction's encoder sees. With that the way back may be left out, as there is no cycle then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.networks.trained_translator import Places
from distill.objectives.bases.translation import Side, TranslationConfig, TranslationObjective
from distill.types import Batch, Draws, Phase
from gen.models.translation.network import TranslationJob
from gen.nn.registry import Config


class ContrastiveConfig(Config):
    """weight, identity: of PatchNCE on translated pictures, and on those that are of the wanted kind already. patches: of each
    map, at most; temperature; dim: width of the features that are compared. The defaults are CUT's."""

    weight: float = Field(default=1.0, ge=0)
    identity: float = Field(default=1.0, ge=0)
    patches: int = Field(default=256, gt=0)
    temperature: float = Field(default=0.07, gt=0)
    dim: int = Field(default=256, gt=0)


class CycleGanTurboConfig(TranslationConfig):
    """cycle, cycle_perceptual, identity, identity_perceptual: weights of the absolute differences and of those in features;
    without a way back `cycle` is not used. contrastive: CUT's loss, None for none."""

    cycle: float = Field(default=1.0, ge=0)
    cycle_perceptual: float = Field(default=10.0, ge=0)
    identity: float = Field(default=1.0, ge=0)
    identity_perceptual: float = Field(default=1.0, ge=0)
    contrastive: ContrastiveConfig | None = None

    @model_validator(mode="after")
    def _keeps_what_is_shown(self) -> CycleGanTurboConfig:
        if not self.adversarial_weight:
            raise ValueError("adversarial_weight is 0, so nothing says what the other kind of pictures looks like; give it one")
        if self.back is None and not (self.contrastive and self.contrastive.weight):
            raise ValueError(
                "there is no way back, so no cycle, and nothing holds on to what a picture shows: give back a direction, or "
                "give contrastive: {}"
            )
        return self


class CycleGanTurboObjective(TranslationObjective):
    """See the module."""

    config: CycleGanTurboConfig

    def __init__(self, config: CycleGanTurboConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        cycled = config.cycle_perceptual > 0 and config.back is not None
        self.compares = cycled or config.identity_perceptual > 0
        self.projected = None if config.contrastive is None else config.contrastive.dim
        super().__init__(config, network, source, teacher)

    # ---- what is asked for ----

    def jobs(self, batch: Batch, sides: list[Side], draws: Draws) -> list[TranslationJob]:
        """Every direction, and back again where there are two."""
        plain = super().jobs(batch, sides, draws)
        if len(sides) < 2:
            return plain
        others = [(other.direction, other.condition) for other in reversed(plain)]
        return [replace(job, back=back) for job, back in zip(plain, others, strict=True)]

    def same(self, batch: Batch, sides: list[Side]) -> list[TranslationJob]:
        """Pictures that are of the wanted kind already, in the same direction."""
        return [replace(self.job(batch, side), images=side.wanted) for side in sides] if self.keeps_same else []

    @property
    def keeps_same(self) -> bool:
        config = self.config
        return bool(
            config.identity or config.identity_perceptual or (config.contrastive is not None and config.contrastive.identity)
        )

    @torch.no_grad()
    def map_sizes(self, images: Tensor) -> list[torch.Size]:
        """(height, width) of the maps that are compared, of pictures of this size."""
        trained: Any = self.roles["translator"].network
        # by the frozen autoencoder: what trains may be in shards here
        latents, maps = trained.translator.skips.encode(torch.zeros_like(images[:1]))
        return [one.shape[-2:] for one in (*maps, latents)]

    def places(self, sizes: Sequence[torch.Size], device: torch.device, draws: Draws, name: str) -> Places:
        """Which pixels of each map are compared: (B, P) each, drawn without repetition for every sample."""
        assert self.config.contrastive is not None
        found = []
        for number, (height, width) in enumerate(sizes):
            order = draws.uniform(f"{name} {number}", (height * width,), device).argsort(1)
            found.append(order[:, : self.config.contrastive.patches])
        return found

    # ---- losses ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.role != "translator":
            return self.telling(phase, models, batch, draws, step)
        config, sides = self.config, self.sides(batch, draws)
        jobs, same = self.jobs(batch, sides, draws), self.same(batch, sides)
        contrast = None
        if config.contrastive is not None:
            temperature, given = config.contrastive.temperature, sides[0].given
            sizes = self.map_sizes(given)
            contrast = {
                n: (self.places(sizes, given.device, draws, f"patches {n}"), temperature) for n in range(len(jobs + same))
            }
        made = models["translator"](*jobs, *same, contrast=contrast)
        self.keep(batch, step, [picture for picture, *_ in made[: len(jobs)]])
        total, logs = made[0][0].new_zeros(()), {}
        for number, side in enumerate(sides):
            parts = self.side_parts(models, side, made[number], made[len(jobs) + number] if same else None, step)
            for name, (weight, value) in parts.items():
                total = total + weight * value
                logs[f"{side.direction.name}_{name}"] = value.detach()
        return total, logs

    def side_parts(
        self,
        models: Mapping[str, nn.Module],
        side: Side,
        made: tuple[Tensor, Tensor | None, Tensor | None],
        same: tuple[Tensor, Tensor | None, Tensor | None] | None,
        step: int,
    ) -> dict[str, tuple[float, Tensor]]:
        """Name -> (weight, loss) of one direction."""
        config = self.config
        there, again, contrasted = made
        parts: dict[str, tuple[float, Tensor]] = {}
        if again is not None:
            parts["cycle"] = config.cycle, (again - side.given).abs().mean()
            if config.cycle_perceptual:
                parts["cycle_perceptual"] = config.cycle_perceptual, self.distance(again.clamp(-1, 1), side.given).mean()
        if same is not None:
            kept, _, kept_contrast = same
            parts["identity"] = config.identity, (kept - side.wanted).abs().mean()
            if config.identity_perceptual:
                distance = self.distance(kept.clamp(-1, 1), side.wanted).mean()
                parts["identity_perceptual"] = config.identity_perceptual, distance
            if config.contrastive is not None and kept_contrast is not None:
                parts["identity_contrast"] = config.contrastive.identity, kept_contrast.mean()
        if config.contrastive is not None and contrasted is not None:
            parts["contrast"] = config.contrastive.weight, contrasted.mean()
        if self.heeds_judges(step):
            parts["adversarial"] = config.adversarial_weight, self.fooling(models, side, there)
        return parts
