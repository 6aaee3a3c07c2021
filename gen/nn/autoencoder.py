"""A small convolutional autoencoder: pictures (B, 3, H, W) in [-1, 1] to latents (B, C, H/f, W/f) and back.

It is fully convolutional, so any height and width divisible by the factor f will do, and nothing joins the encoder to the
decoder but the latents. Encoder and decoder are each a network beside a linear map, after Chen et al. 2024 (DC-AE, arXiv
2410.10733, section 3.1), and start as averages over small squares and copies into them: training begins from a small picture
of the picture, and adds what that lacks.

Resolution changes are exact rearrangements of pixels (unshuffle and shuffle), nearly all blocks run at 1/4 and 1/8 of the
resolution, and one light convolution at full size draws the edges: decoding stays cheap on a CPU.

Latents are bounded by 3 tanh(z / 3) instead of being pulled to a prior, which keeps their spread near 1 and their tails short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from gen.nn.initialisation import initialise
from gen.nn.registry import Config

LATENT_BOUND = 3.0


class AutoencoderConfig(Config):
    """Sizes. Widths and blocks run from the finest resolution to the coarsest in the encoder and back in the decoder."""

    factor: int = Field(default=8, ge=2, le=64, description="picture pixels per latent pixel, each way; a power of two")
    channels: PositiveInt = Field(default=16, description="latent channels")
    encoder_widths: tuple[PositiveInt, ...] = Field(default=(64, 128), min_length=1, max_length=6)
    encoder_blocks: tuple[int, ...] = (1, 2)
    decoder_widths: tuple[PositiveInt, ...] = Field(default=(128, 64, 32), min_length=1, max_length=6)
    decoder_blocks: tuple[int, ...] = (3, 2, 1)
    refine_width: PositiveInt = Field(default=16, description="channels at full resolution, just before the picture")

    @model_validator(mode="after")
    def _check(self) -> AutoencoderConfig:
        if self.factor & (self.factor - 1):
            raise ValueError(f"factor is {self.factor}; it must be a power of two")
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_widths"), getattr(self, f"{side}_blocks")
            if len(widths) != len(blocks):
                raise ValueError(f"{side}_widths has {len(widths)} entries and {side}_blocks {len(blocks)}; they must agree")
            if 2 ** len(widths) > 2 * self.factor:
                raise ValueError(f"{side}_widths has {len(widths)} levels, more than a factor of {self.factor} has room for")
            if min(blocks) < 0 or max(blocks) > 64:
                raise ValueError(f"{side}_blocks must lie between 0 and 64")
        return self


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))); the second convolution starts at zero."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _average_squares(weight: Tensor, factor: int) -> Tensor:
    """Fill the weight (C, 3 f^2, 1, 1) of a linear map from the f x f pixels of a latent pixel to its channels: the first
    3 s^2 channels are averages over s x s squares, with the largest s that fits; the rest are zero."""
    channels, side = weight.shape[0], 1
    while 3 * (2 * side) ** 2 <= channels and 2 * side <= factor:
        side *= 2
    pixels = torch.arange(factor) * side // factor
    square = pixels[:, None] * side + pixels  # which square a pixel lies in
    weight.zero_()
    for colour in range(3):
        for index in range(side**2):
            if (channel := colour * side**2 + index) < channels:
                inside = (square == index).float()
                weight[channel, colour * factor**2 : (colour + 1) * factor**2, 0, 0] = (inside / inside.sum()).flatten()
    return weight


class Autoencoder(nn.Module):
    """`encode` pictures to latents, `decode` latents to pictures. `factor` and `channels` say how their shapes relate; latents
    lie within [-bound, bound]."""

    bound = LATENT_BOUND

    def __init__(self, config: AutoencoderConfig | None = None):
        super().__init__()
        self.config = config = config or AutoencoderConfig()
        self.factor, self.channels = config.factor, config.channels

        widths, blocks = config.encoder_widths, config.encoder_blocks
        stem = config.factor // 2 ** (len(widths) - 1)
        layers: list[nn.Module] = [nn.PixelUnshuffle(stem), nn.Conv2d(3 * stem**2, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * widths[level - 1], width, 1)]
            layers += [ResidualBlock(width) for _ in range(count)]
        layers += [nn.SiLU(), nn.Conv2d(widths[-1], config.channels, 3, padding=1)]
        self.encoder = nn.Sequential(*layers)

        widths, blocks = config.decoder_widths, config.decoder_blocks
        layers = [nn.Conv2d(config.channels, widths[0], 3, padding=1)]
        for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if level:
                layers += [nn.SiLU(), nn.Conv2d(widths[level - 1], 4 * width, 1), nn.PixelShuffle(2)]
            layers += [ResidualBlock(width) for _ in range(count)]
        up = config.factor // 2 ** (len(widths) - 1)
        layers += [nn.SiLU(), nn.Conv2d(widths[-1], up**2 * config.refine_width, 3, padding=1), nn.PixelShuffle(up)]
        layers += [nn.SiLU(), nn.Conv2d(config.refine_width, 3, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

        pixels = 3 * config.factor**2
        self.encoder_skip = nn.Conv2d(pixels, config.channels, 1)
        self.decoder_skip = nn.Conv2d(config.channels, pixels, 1)
        self.reset_parameters()
        cast("Any", self).to(memory_format=torch.channels_last)  # convolutions run two to three times faster this way on a CPU

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Convolutions that keep their input's variance (PyTorch's own shrink it threefold, and colours learn late), with
        little added to the linear maps at first."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise(nn.init.normal_, module.weight, std=module.weight[0].numel() ** -0.5)
                initialise(nn.init.zeros_, module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                initialise(nn.init.zeros_, module.conv2.weight)
        for last in (self.encoder[-1], self.decoder[-1]):
            cast("nn.Conv2d", last).weight *= 0.1
        averages = _average_squares(self.encoder_skip.weight, self.factor)
        self.decoder_skip.weight.copy_((averages > 0).float().transpose(0, 1))

    def encode(self, images: Tensor, through: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Latents (B, C, H/f, W/f), each value within +-3, of pictures (B, 3, H, W) in [-1, 1]. through: in the place of
        `encoder`, with more to see or to add on the way (`gen.models.translation.skips`)."""
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise ValueError(
                f"The autoencoder takes pictures (B, 3, H, W), H and W divisible by {self.factor}, not {tuple(images.shape)}."
            )
        images = images.contiguous(memory_format=torch.channels_last)
        z = (through or self.encoder)(images) + self.encoder_skip(F.pixel_unshuffle(images, self.factor))
        return LATENT_BOUND * torch.tanh(z / LATENT_BOUND)

    def decode(self, latents: Tensor, through: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Pictures (B, 3, f h, f w) of latents (B, C, h, w); nominally in [-1, 1], not clamped. through: in the place of
        `decoder`."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(f"The autoencoder takes latents (B, {self.channels}, h, w), not {tuple(latents.shape)}.")
        latents = latents.contiguous(memory_format=torch.channels_last)
        return (through or self.decoder)(latents) + F.pixel_shuffle(self.decoder_skip(latents), self.factor)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(reconstructions (B, 3, H, W), latents); `noise` is added to the latents before they are decoded."""
        latents = self.encode(images)
        return self.decode(latents if noise is None else latents + noise), latents
