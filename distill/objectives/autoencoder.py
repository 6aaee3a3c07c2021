"""Training of the autoencoder: pictures come back sharp, latents stay small and bear a little noise.

Loss = |y - x| + |grad y - grad x| + w |z|^2, with y the decoding of the latents plus noise. The gradient term pays for
blurred edges, which are what one sees of vector graphics. Most of the run sees random crops (a fully convolutional network
learns the same from a quarter of the pixels); the end sees whole pictures, borders included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor, nn

from distill.losses.distances import psnr
from distill.losses.pictures import gradient_difference
from distill.objectives.bases.objective import Objective
from distill.types import Batch, Draws, Phase, Preview, Role, pictures_of
from gen.nn.registry import Config

if TYPE_CHECKING:
    from distill.data.source import Source

MEASURED = 64  # pictures


class AutoencoderObjectiveConfig(Config):
    """Weights of the loss, and the crop schedule."""

    gradient_weight: NonNegativeFloat = Field(default=1.0, description="weight of the image-gradient term")
    latent_weight: NonNegativeFloat = Field(default=1e-3, description="weight of the mean square of the latents")
    noise: NonNegativeFloat = Field(default=0.1, description="standard deviation of the noise on the latents")
    crop: NonNegativeInt = Field(
        default=64, description="side of the random crops in pixels; 0 trains on whole pictures throughout"
    )
    crop_steps: NonNegativeInt = Field(default=0, description="steps that train on crops; whole pictures from this step on")


def random_crops(images: Tensor, size: int, places: Tensor) -> Tensor:
    """(B, C, size, size) cut from images (B, C, H, W) at places (B, 2) in [0, 1): fractions of the room down and across."""
    room = torch.tensor([images.shape[2] - size + 1, images.shape[3] - size + 1])
    corners = (places.cpu() * room).long().tolist()
    return torch.stack([image[:, i : i + size, j : j + size] for image, (i, j) in zip(images, corners, strict=True)])


class AutoencoderObjective(Objective):
    """Role "autoencoder" trains, with an average of its weights."""

    def __init__(self, config: AutoencoderObjectiveConfig, network: nn.Module, source: Source | None = None):
        autoencoder: Any = network
        if config.crop % autoencoder.factor:
            raise ValueError(f"crop is {config.crop}; it must be divisible by the autoencoder's factor, {autoencoder.factor}.")
        self.config, self.factor = config, autoencoder.factor
        self.roles = {"autoencoder": Role(network)}
        self.source = source

    def crop_size(self, step: int, side: int) -> int:
        """Side of the pictures trained on at a step, given pictures of `side` pixels."""
        return self.config.crop if 0 < self.config.crop < side and step < self.config.crop_steps else side

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        images = pictures_of(batch)
        size = self.crop_size(step, min(images.shape[-2:]))
        if size < max(images.shape[-2:]):
            images = random_crops(images, size, draws.uniform("crop", (2,)))
        images = images.contiguous(memory_format=torch.channels_last)
        network: Any = self.roles["autoencoder"].network
        shape = (network.channels, images.shape[2] // self.factor, images.shape[3] // self.factor)
        noise = self.config.noise * draws.normal("noise", shape, images.device)
        y, z = models["autoencoder"](images, noise)
        y, z = y.float(), z.float()

        pixel, gradient = (y - images).abs().mean(), gradient_difference(y, images)
        loss = pixel + self.config.gradient_weight * gradient + self.config.latent_weight * z.square().mean()
        logs = {"l1": pixel, "gradient": gradient, "psnr": psnr(y, images), "latent_std": z.std()}
        return loss, {name: value.detach() for name, value in logs.items()}

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """Originals, then their reconstructions."""
        images = pictures_of(batch)
        images = torch.cat([images, models["autoencoder"](images)[0].float().clamp(-1, 1)])
        return images, ["original"] * len(batch) + ["decoded"] * len(batch)

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """PSNR in dB, without noise, and the latents' standard deviation, on the source's first pictures, whole."""
        if self.source is None:
            return {}
        network = models["autoencoder"]
        images = pictures_of(self.source.batch(range(MEASURED))).to(next(network.parameters()).device)
        y, z = network(images)
        return {"psnr": psnr(y.float(), images).item(), "latent_std": z.float().std().item()}
