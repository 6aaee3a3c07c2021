"""A translator: a one-step model between a picture's latents and another picture, with LoRAs and skip connections of its own.

The latents go in where the model's noise would, at its first noise level; its clean image is decoded (arXiv 2403.12036,
section 3.1). LoRAs change the denoiser, and for each direction the autoencoder, whose encoder hands details to its decoder
through convolutions of 1 x 1 without a bias (section 3.2). A strength r below 1 makes the rest of the way from noise: it
scales the LoRAs and the skip connections, and what goes in is r z + (1 - r) eps (section 3.4).

Pictures are (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.folder import ModelConfig
from gen.models.translation.config import TranslatorConfig
from gen.models.translation.skips import SkipAutoencoder, skips_of
from gen.nn.low_rank import LowRankChanges, Scale
from gen.nn.replaced_weight import replaced
from samplers.denoiser import Condition, Context
from samplers.path import NoiseLevel, expand
from samplers.registry import get_grid

FIRST_SKIP = 1e-5  # of every weight of a skip convolution, as published: next to nothing, with a gradient


@dataclass(frozen=True)
class TranslationBase:
    """The model that a translator changes, which stays as it is: its config and networks."""

    model: ModelConfig
    network: Any
    autoencoder: Any

    @property
    def level(self) -> NoiseLevel:
        """The level that its one step begins at."""
        defaults = self.model.defaults
        return get_grid(defaults.schedule, self.model.path.build(), 1, **defaults.schedule_options)[0]

    def told(self, condition: Condition, rows: int) -> Condition:
        """A condition with the guidance scale of the model's defaults, for a network that receives one."""
        defaults = self.model.defaults
        if defaults.guidance != "embedded" or "guidance" in condition.extra:
            return condition
        scale = torch.full((rows,), float(defaults.guidance_scale), device=next(self.network.parameters()).device)
        return replace(condition, extra={**condition.extra, "guidance": scale})


@dataclass(frozen=True)
class TranslationJob:
    """Pictures (B, 3, H, W) to translate in one direction.

    condition: what the network is told of them. strength: r, one for all or one for each (B,); noise: (B, C, h, w) of unit
    variance, needed where it is below 1. back: direction and condition by which the result is translated again.
    """

    direction: str
    images: Tensor
    condition: Condition
    strength: Scale = 1.0
    noise: Tensor | None = None
    back: tuple[str, Condition] | None = None


class Coder(nn.Module):
    """What one direction has of its own: changes of the autoencoder, and the skip convolutions."""

    def __init__(self, autoencoder: nn.Module, skips: SkipAutoencoder, config: TranslatorConfig):
        super().__init__()
        self.changes = LowRankChanges(autoencoder, config.layers.autoencoder, config.coder_rank, scale=config.coder_scale)
        self.skips = nn.ModuleList(nn.Conv2d(shown, joined, 1, bias=False) for shown, joined in skips.widths)
        for convolution in self.skips:
            nn.init.constant_(convolution.weight, FIRST_SKIP)  # type: ignore[arg-type]
        like = next(autoencoder.parameters())
        self.skips.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


class Translator(nn.Module):
    """See the module. Its parameters and its state dict are the changes alone; `base` is shared and frozen.

    Raises ValueError for layers that the base does not have, for an autoencoder without places for skip connections, and for a
    direction named as something that modules have ("train", "float").
    """

    base: TranslationBase

    def __init__(self, config: TranslatorConfig, base: TranslationBase):
        super().__init__()
        self.config = config
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "skips", skips_of(base.autoencoder))
        layers, names = config.layers, [direction.name for direction in config.directions]
        if taken := next((name for name in names if hasattr(nn.ModuleDict(), name)), None):
            raise ValueError(f"A direction cannot be named {taken!r}, which means something to torch; choose another name.")
        self.denoiser = LowRankChanges(base.network, layers.denoiser, config.rank, layers.full, config.scale)
        made = {name: Coder(base.autoencoder, self.skips, config) for name in names}
        self.coders = nn.ModuleDict(made)

    skips: SkipAutoencoder

    def forward(self, *jobs: TranslationJob) -> list[tuple[Tensor, Tensor | None]]:
        """(pictures, those translated back or None) of every job."""
        made = []
        for job in jobs:
            there = self.translate(job)
            again = None
            if job.back is not None:
                name, condition = job.back
                again = self.translate(replace(job, direction=name, condition=condition, images=there, back=None))
            made.append((there, again))
        return made

    def translate(self, job: TranslationJob) -> Tensor:
        """Pictures (B, 3, H, W), differentiable, nominally in [-1, 1] and not clamped."""
        base = self.base
        z, maps = self.encode(job.direction, job.images, job.strength)
        with replaced(base.network, self.denoiser.weights(base.network, job.strength)):
            dtype = next(base.network.parameters()).dtype
            denoiser = base.model.denoiser(base.network, None if dtype == torch.float32 else dtype)
            x = base.level.sigma * self.mixed(z, job.strength, job.noise)
            prediction = denoiser(x, base.level, base.told(job.condition, len(x)), Context())
        return self.decode(job.direction, prediction.x0, maps, job.strength).float()

    # ---- the parts of a translation ----

    def encode(self, direction: str, images: Tensor, strength: Scale = 1.0) -> tuple[Tensor, list[Tensor]]:
        """(latents as the denoiser sees them, maps for `decode`) of pictures."""
        autoencoder = self.base.autoencoder
        with replaced(autoencoder, self.coder(direction).changes.weights(autoencoder, strength)):
            latents, maps = self.skips.encode(images)
        return latents * self.base.model.latent_scale, maps

    @staticmethod
    def mixed(z: Tensor, strength: Scale, noise: Tensor | None) -> Tensor:
        """What goes in for the noise: r z + (1 - r) eps (arXiv 2403.12036, section 3.4)."""
        if not isinstance(strength, Tensor) and strength == 1:
            return z
        if noise is None:
            raise ValueError("A strength below 1 needs noise; give noise (B, C, h, w).")
        share = expand(strength, z)
        return share * z + (1 - share) * noise

    def decode(self, direction: str, x0: Tensor, maps: Sequence[Tensor], strength: Scale = 1.0) -> Tensor:
        """Pictures (B, 3, H, W) of clean latents and the maps of `encode`."""
        autoencoder, coder, share = self.base.autoencoder, self.coder(direction), self.config.gamma * strength
        added = [one(expand(share, shown) * shown) for one, shown in zip(coder.skips, maps, strict=True)]
        with replaced(autoencoder, coder.changes.weights(autoencoder, strength)):
            return self.skips.decode(x0 / self.base.model.latent_scale, added)

    def coder(self, direction: str) -> Coder:
        made: Any = self.coders[direction]
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> Translator:
        """A copy with changes of its own on the same base."""
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.config = self.config
        object.__setattr__(twin, "base", self.base)
        object.__setattr__(twin, "skips", self.skips)
        twin.denoiser, twin.coders = copy.deepcopy(self.denoiser, memo), copy.deepcopy(self.coders, memo)
        return twin.train(self.training)
