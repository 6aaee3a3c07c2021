"""Pictures to latents and back with diffusers' autoencoders, whole where memory allows and in tiles where not.

Pictures are (B, 3, H, W) in [-1, 1]; latents (B, C, H / f, W / f) as the denoiser sees them: (z - shift) scale, with a shift
and scale per channel where the autoencoder's config has them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.weights import write_json
from gen.models.tiling import tiled

WHOLE = 1536 * 1536  # pixels that are coded in one piece, of one picture or of several
TILE, OVERLAP = 1024, 256  # pixels, of a larger picture's tiles


class BridgedAutoencoder(nn.Module):
    """`encode`, `decode`, `factor`, `channels`, as of `gen.nn.autoencoder.Autoencoder`. encode gives the mean, without noise.

    whole: the pixels coded at once: fewer pictures at a time, then tiles of `tile` pixels with `overlap`, faded linearly into
    one another, so that no seam shows. A tile sees nothing beyond its edge: colours of tiles may differ slightly.
    """

    vae: Any  # of diffusers
    shift: Tensor
    scale: Tensor

    def __init__(
        self, vae: nn.Module, whole: int = WHOLE, tile: int = TILE, overlap: int = OVERLAP, latent_scale: float | None = None
    ):
        super().__init__()
        self.vae, self.whole, self.tile, self.overlap, self.latent_scale = vae, whole, tile, overlap, latent_scale
        config: Any = self.vae.config
        levels = config.get("encoder_block_out_channels") or config.get("block_out_channels")
        self.factor = 2 ** (len(levels) - 1)
        self.channels = config["latent_channels"]
        mean, std = config.get("latents_mean"), config.get("latents_std")
        scaled = 1.0 if config.get("scaling_factor") is None else float(config["scaling_factor"])
        scaled = scaled if latent_scale is None else latent_scale
        shift, scale = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(scaled)
        if mean is not None and std is not None:  # Playground's and Cosmos' way to write it
            shift, scale = torch.tensor(mean), scaled / torch.tensor(std)
        for name, value in (("shift", shift), ("scale", scale)):
            if not torch.isfinite(value).all() or value.numel() not in (1, self.channels):
                raise ValueError(f"The autoencoder's latent {name} is not finite, or not one number per channel.")
        self.register_buffer("shift", shift.view(1, -1, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, -1, 1, 1), persistent=False)

    def save_folder(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        """As a part of one of our model folders (`gen.models.bridge.parts`)."""
        from gen.models.bridge.parts import AUTOENCODER, save_foreign

        save_foreign(self.vae, folder / "vae", dtype)
        scale = {} if self.latent_scale is None else {"latent_scale": self.latent_scale}
        write_json(folder / "config.json", {"type": AUTOENCODER, **scale})

    def encode(self, images: Tensor) -> Tensor:
        f = self.factor
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % f or images.shape[3] % f:
            raise ValueError(f"The autoencoder takes pictures (B, 3, H, W), sides divisible by {f}, not {tuple(images.shape)}.")
        latents = self._in_parts(images, self._encode, self.tile, self.overlap, 1, f)
        return (latents - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        f = self.factor
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(f"The autoencoder takes latents (B, {self.channels}, h, w), not {tuple(latents.shape)}.")
        return self._in_parts(latents / self.scale + self.shift, self._decode, self.tile // f, self.overlap // f, f, 1)

    def _encode(self, images: Tensor) -> Tensor:
        coded = self.vae.encode(images.to(self.vae.dtype))
        for name in ("latents", "latent"):  # the tiny and the deep-compression autoencoder
            if hasattr(coded, name):
                return getattr(coded, name).to(images.dtype)
        return coded.latent_dist.mode().to(images.dtype)

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.dtype)).sample.to(latents.dtype)

    def _in_parts(self, x: Tensor, code: Callable[[Tensor], Tensor], tile: int, overlap: int, grow: int, shrink: int) -> Tensor:
        """`code` of x (B, C, h, w): its output is `grow` times larger, `shrink` times smaller; tile and overlap in x's
        pixels."""
        pixels = x.shape[2] * x.shape[3] * grow**2
        if pixels > self.whole:
            return torch.cat([tiled(picture[None], code, tile, overlap, grow, shrink) for picture in x])
        return torch.cat([code(part) for part in x.split(max(1, self.whole // pixels))])
