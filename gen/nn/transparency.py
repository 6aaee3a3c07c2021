"""A network that tells a thing from what is behind it: pictures (B, 3, H, W) in [0, 1] -> opacity and background.

It is a small U-Net over the picture and, where they are known, the latents that the picture was decoded from (as the decoder of
LayerDiffuse, arXiv 2402.17113). It gives the opacity (B, 1, H, W) and the colour of the background at each pixel
(B, 3, H, W); the colour of the thing follows from these (`gen.io.alpha.lifted`), so that thing upon background is the picture
again. Any autoencoder may have drawn the picture, and any camera: latents of other channels are left out.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from gen.nn.initialisation import initialise
from gen.nn.registry import Config


class TransparencyConfig(Config):
    """Sizes. Widths and blocks run from half the resolution to the coarsest, by halves."""

    widths: tuple[PositiveInt, ...] = Field(default=(32, 64, 96, 128), min_length=1, max_length=6)
    blocks: tuple[PositiveInt, ...] = Field(default=(1, 1, 2, 2), description="on the way down; on the way up one each")
    latent_channels: int = Field(default=16, ge=0, le=1024, description="of the latents that are read, 0 for none")
    factor: int = Field(default=8, ge=1, le=64, description="picture pixels per latent pixel, each way")
    refine_width: PositiveInt = Field(default=16, description="channels at full resolution")
    size: PositiveInt = Field(default=128, description="side of the pictures it was trained on, in pixels")


class NormedBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))); the second convolution starts at zero. Without norms the coarse levels grow without
    bound, and what comes up from them dies in the activations."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class Transparency(nn.Module):
    """See the module. `forward` gives what training needs, `separate` what is to be used."""

    def __init__(self, config: TransparencyConfig | None = None):
        super().__init__()
        self.config = config = config or TransparencyConfig()
        widths, blocks = config.widths, config.blocks
        if len(widths) != len(blocks):
            raise ValueError(f"widths has {len(widths)} entries and blocks {len(blocks)}; they must agree")
        self.multiple = 2 ** len(widths)
        self.down, self.stages = nn.ModuleList(), nn.ModuleList()
        before = 3
        for width, count in zip(widths, blocks, strict=True):
            size = 3 if before == 3 else 1
            self.down.append(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * before, width, size, padding=size // 2)))
            self.stages.append(nn.Sequential(*(NormedBlock(width) for _ in range(count))))
            before = width
        self.whole = nn.Linear(widths[-1], widths[-1])  # what the picture is like as a whole, such as its background
        # latents come in at the resolution that is nearest to theirs
        self.latent_stage = min(range(len(widths)), key=lambda stage: abs(2 ** (stage + 1) - config.factor))
        self.latents = nn.Conv2d(config.latent_channels, widths[self.latent_stage], 1) if config.latent_channels else None
        self.up, self.finish = nn.ModuleList(), nn.ModuleList()
        for width, next_width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.up.append(
                nn.Sequential(nn.GroupNorm(1, width), nn.SiLU(), nn.Conv2d(width, 4 * next_width, 1), nn.PixelShuffle(2))
            )
            self.finish.append(NormedBlock(next_width))
        refine = config.refine_width
        self.last = nn.Sequential(
            nn.GroupNorm(1, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 4 * refine, 3, padding=1), nn.PixelShuffle(2)
        )
        self.head = nn.Sequential(nn.Conv2d(refine + 3, refine, 3, padding=1), nn.SiLU(), nn.Conv2d(refine, 4, 3, padding=1))
        self.reset_parameters()
        cast("Any", self).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Layers that keep their input's variance, little added at first by what comes in from aside."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                initialise(nn.init.normal_, module.weight, std=module.weight[0].numel() ** -0.5)
                initialise(nn.init.zeros_, module.bias)
        for module in self.modules():
            if isinstance(module, NormedBlock):
                initialise(nn.init.zeros_, module.conv2.weight)
        for late in (self.whole, self.latents, self.head[-1]):
            if late is not None:
                cast("nn.Conv2d", late).weight.mul_(0.1)

    def reads(self, latents: Tensor | None) -> bool:
        """Are these latents of the kind that it was trained with?"""
        return latents is not None and self.latents is not None and latents.shape[1] == self.config.latent_channels

    def forward(self, pictures: Tensor, latents: Tensor | None = None, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(opacity (B, 1, H, W), background (B, 3, H, W)), neither bounded, of pictures in [0, 1].

        latents: (B, C, h, w) as the autoencoder made them. known: (B,), 0 for rows whose latents are left out, 1 for others.
        """
        height, width = pictures.shape[2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        padded = F.pad(pictures, padding, mode="replicate") if any(padding) else pictures
        x = (2 * padded - 1).contiguous(memory_format=torch.channels_last)
        full, skips = x, []
        for stage, (down, blocks) in enumerate(zip(self.down, self.stages, strict=True)):
            x = down(x)
            if stage == self.latent_stage and latents is not None and self.latents is not None:
                seen = self.latents(latents.to(x.dtype))
                if known is not None:
                    seen = seen * known.to(seen.dtype)[:, None, None, None]
                room = [round(side * after / before) for side, after, before in
                        zip((height, width), x.shape[2:], padded.shape[2:], strict=True)]  # fmt: skip
                if seen.shape[2:] != tuple(room):
                    seen = F.interpolate(seen, room, mode="nearest")
                x = x + F.pad(seen, (0, x.shape[3] - room[1], 0, x.shape[2] - room[0]))
            x = blocks(x)
            skips.append(x)
        x = x + self.whole(x.mean((2, 3)))[:, :, None, None]
        for up, block, skip in zip(self.up, self.finish, skips[-2::-1], strict=True):
            x = block(up(x) + skip)
        x = self.head(torch.cat([self.last(x), full], 1))[..., :height, :width]
        return x[:, :1], x[:, 1:] + 0.5

    def separate(self, pictures: Tensor, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(opacity, background), both in [0, 1], float32. Latents of another kind are left out."""
        kind = next(self.parameters())
        alpha, background = self(pictures.to(kind), latents.to(kind) if self.reads(latents) and latents is not None else None)
        return alpha.float().clamp(0, 1), background.float().clamp(0, 1)
