"""Training of an upsampler: pictures from smaller ones of them, which are noised (CDM, arXiv 2106.15282; Imagen, 2205.11487).

Of each picture x0 the objective makes, at a random level s of the network's own range,

    small = means of squares of factor by factor pixels,  noised = alpha(s) small + sigma(s) eps,  image = enlarge(noised)

and the network predicts x0 from x, image and s by the loss of `diffusion`. At s = 0 the picture is as it was; at s = 1, on a
path that ends in pure noise, image says nothing of it, and the network learns to do without one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.types import Batch, Draws, Phase, Preview, pictures_of
from gen.nn.backbones.upsampler import LEVEL, shown_picture
from samplers.denoiser import Condition
from samplers.noise import fold, normal

PREVIEWED, MEASURED = 6, 32  # pictures


class UpsamplerObjectiveConfig(DiffusionConfig):
    """As `diffusion`, of pixels. crop: side of the part, at a random place, of each picture that is trained on; None: all of
    it."""

    crop: int | None = Field(default=None, ge=4)


class UpsamplerObjective(DiffusionObjective):
    """See the module. One role, `denoiser`, a network that enlarges: `upsampler`, or `adm` with `beside`. Data of pictures."""

    config: UpsamplerObjectiveConfig

    def __init__(self, config: UpsamplerObjectiveConfig, network: nn.Module, source: Any = None):
        super().__init__(config, network, source)
        sizes: Any = getattr(network, "config", None)
        self.data, self.sizes = source, sizes
        if getattr(sizes, "factor", 1) == 1 or not hasattr(sizes, "enlarging"):
            raise ValueError(
                f"The network is a {type(network).__name__}, which enlarges nothing; give network: {{type: upsampler, ...}}, "
                "or an adm with beside."
            )
        if self.autoencoder is not None:
            raise ValueError("An upsampler is trained on pixels; leave the autoencoder out.")
        if config.crop is not None and config.crop % sizes.factor:
            raise ValueError(f"crop is {config.crop}; give a multiple of the network's factor {sizes.factor}")

    # ---- what the network sees ----

    def shown(self, condition: Condition, x0: Tensor, s: Tensor, eps: Tensor) -> Condition:
        """A condition with the picture that is enlarged, noised with eps (B, C, h, w) to levels s (B,)."""
        small = F.avg_pool2d(x0.float(), self.sizes.factor)
        size = (x0.shape[2], x0.shape[3])
        image, level = shown_picture(small, eps, s.to(x0.device), self.path, size, self.sizes.enlarging)
        return replace(condition, image=image, extra={**condition.extra, LEVEL: level})

    @torch.no_grad()
    def condition(self, batch: Batch, device: torch.device) -> Condition:
        """What it is told when it draws: the batch's own pictures, smaller, with as little noise as it knows."""
        x0 = self.clean(batch)
        s = torch.full((len(x0),), self.sizes.noise[0])
        eps = normal(batch.index.tolist(), self._small(x0), device=x0.device)
        return self.shown(super().condition(batch, device), x0, s, eps)

    @torch.no_grad()
    def trained_condition(self, batch: Batch, x0: Tensor, draws: Draws) -> Condition:
        low, high = self.sizes.noise
        s = low + (high - low) * draws.uniform("augmentation", device=x0.device)
        eps = draws.normal("small", self._small(x0), x0.device)
        return self.shown(super().condition(batch, x0.device), x0, s, eps)

    def _small(self, x0: Tensor) -> tuple[int, int, int]:
        return x0.shape[1], x0.shape[2] // self.sizes.factor, x0.shape[3] // self.sizes.factor

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return super().loss(phase, models, self.cropped(batch, draws), draws, step)

    def cropped(self, batch: Batch, draws: Draws) -> Batch:
        """The batch with a part of each of its pictures."""
        side, images = self.config.crop, pictures_of(batch)
        if side is None or side >= min(images.shape[2:]):
            return batch
        parts = []
        for picture, counter in zip(images, batch.index.tolist(), strict=True):
            rng = random.Random(fold(draws.seed, "crop", counter))
            top, left = (rng.randint(0, length - side) for length in picture.shape[1:])
            parts.append(picture[:, top : top + side, left : left + side])
        return replace(batch, images=torch.stack(parts))

    # ---- what is shown and measured ----

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """The enlarged picture; what the network makes of it; the true one."""
        batch = self.known_inputs(batch.first(PREVIEWED))
        drawn, image = self._drawn(models["denoiser"], batch, range(seed, seed + len(batch)))
        names = [name for name in ("enlarged", "drawn", "true") for _ in range(len(batch))]
        return torch.cat([image, drawn, pictures_of(batch)]).clamp(-1, 1), names

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Root mean squared error of the data's first pictures, in levels of 255: drawn, and merely enlarged."""
        if self.data is None:
            return {}
        device = next(models["denoiser"].parameters()).device
        batch = self.known_inputs(self.data.batch(range(MEASURED)).to(device))
        drawn, image = self._drawn(models["denoiser"], batch, range(len(batch)))
        truth = pictures_of(batch)
        errors = {"drawn_error": drawn - truth, "enlarged_error": image.clamp(-1, 1) - truth}
        return {name: 127.5 * error.square().mean().sqrt().item() for name, error in errors.items()}

    def _drawn(self, network: nn.Module, batch: Batch, seeds: range) -> tuple[Tensor, Tensor]:
        """(what the network makes of a batch's pictures made small, those enlarged)."""
        like = self.clean(batch)
        condition, noise = self.condition(batch, like.device), normal(seeds, like.shape[1:], device=like.device)
        assert condition.image is not None
        steps = self.config.preview.num_inference_steps or self.config.defaults.num_inference_steps
        return self.render(self.draw(network, noise, condition, steps)), condition.image
