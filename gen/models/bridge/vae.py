"""Pictures to latents and back with diffusers' autoencoders, whole where memory allows and in tiles where not.

Pictures are (B, 3, H, W) in [-1, 1]; latents (B, C, H / f, W / f) as the denoiser sees them: (z - shift) scale, with a shift
and scale per channel where the autoencoder's config or its batch norm has them. Autoencoders of videos code one frame; latents
that a batch norm sees in patches of p x p (FLUX.2) are seen so by the denoiser too: p^2 channels in the place of one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.io.weights import write_json
from gen.models.tiling import tiled
from gen.nn.batch_invariance import aligned, is_invariant

WHOLE = 1536 * 1536  # pixels that are coded in one piece, of one picture or of several
TILE, OVERLAP = 1024, 256  # pixels, of a larger picture's tiles


def pixels_per_latent(config: Any) -> int:
    """Pixels, each way, that an autoencoder of this config makes one of. ValueError for a config that does not say."""
    if (factor := config.get("scale_factor_spatial")) is not None:  # Wan
        return factor
    for name, fewer in (("encoder_block_out_channels", 1), ("block_out_channels", 1), ("temperal_downsample", 0)):
        if (levels := config.get(name)) is not None:
            return 2 ** (len(levels) - fewer)
    raise ValueError("The autoencoder's config does not say how many pixels become one latent.")


def _check_numbers(name: str, value: Any) -> None:
    """ValueError for what is neither a number, nor numbers in a list, nor absent."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | float)):
            raise ValueError(f"The autoencoder's {name} is {value!r}, which are no numbers.")


def _one_frame(self: Any, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """A causal convolution over time of one frame (B, C, 1, h, w): what is before it is zero, so that only the last slice of
    the weights counts."""
    if cache_x is not None or x.shape[2] != 1 or self.stride[0] != 1:
        return type(self).forward(self, x, cache_x)
    plane = F.pad(x[:, :, 0], self._padding[:4])
    return F.conv2d(plane, self.weight[:, :, -1], self.bias, self.stride[1:], 0, self.dilation[1:], self.groups)[:, :, None]


class BridgedAutoencoder(nn.Module):
    """`encode`, `decode`, `factor`, `channels`, as of `gen.nn.autoencoder.Autoencoder`. encode gives the mean, without noise.

    whole: the pixels coded at once: fewer pictures at a time, then tiles of `tile` pixels with `overlap`, faded linearly into
    one another, so that no seam shows. A tile sees nothing beyond its edge: colours of tiles may differ slightly.
    """

    vae: Any  # of diffusers
    shift: Tensor
    scale: Tensor
    factor: int
    channels: int
    patch: int

    def __init__(
        self, vae: nn.Module, whole: int = WHOLE, tile: int = TILE, overlap: int = OVERLAP, latent_scale: float | None = None
    ):
        super().__init__()
        self.vae, self.whole, self.tile, self.overlap, self.latent_scale = vae, whole, tile, overlap, latent_scale
        config: Any = self.vae.config
        self.frames = "z_dim" in config  # of videos: pictures and latents have a dimension of time before their height
        for module in self.vae.modules() if self.frames else ():
            if type(module).__name__ in ("QwenImageCausalConv3d", "WanCausalConv3d"):
                module.forward = MethodType(_one_frame, module)  # a third of the work, to the same numbers
        self.patch = 1
        norm = getattr(self.vae, "bn", None)
        if norm is not None:
            self.patch, *others = config["patch_size"]
            if others != [self.patch]:
                raise ValueError(f"The autoencoder's latents are in patches of {config['patch_size']}, which are no squares.")
        self.transparent = config.get("in_channels", 3) == 4  # it codes how opaque a picture is too
        if config.get("input_channels", 3) != 3:
            raise ValueError(f"The autoencoder reads pictures of {config['input_channels']} channels, not 3.")
        self.factor = pixels_per_latent(config) * self.patch
        self.channels = config["z_dim" if self.frames else "latent_channels"] * self.patch**2
        for name in ("latents_mean", "latents_std", "batch_norm_eps", "shift_factor", "scaling_factor"):
            _check_numbers(name, config.get(name))
        mean, std = config.get("latents_mean"), config.get("latents_std")
        scaled = 1.0 if config.get("scaling_factor") is None else float(config["scaling_factor"])
        scaled = scaled if latent_scale is None else latent_scale
        shift, scale = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(scaled)
        if mean is not None and std is not None:  # Playground's, Cosmos' and Qwen-Image's way to write it
            shift, scale = torch.tensor(mean), scaled / torch.tensor(std)
        elif norm is not None:  # FLUX.2's
            shift, scale = norm.running_mean.detach().clone(), scaled * (norm.running_var + config["batch_norm_eps"]).rsqrt()
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
        pictures = images.to(self.vae.dtype)
        if self.transparent:
            pictures = torch.cat([pictures, torch.ones_like(pictures[:, :1])], dim=1)
        coded = self.vae.encode(pictures[:, :, None] if self.frames else pictures)
        # the tiny and the deep-compression autoencoder have no distribution
        name = next((name for name in ("latents", "latent") if hasattr(coded, name)), None)
        latents = coded.latent_dist.mode() if name is None else getattr(coded, name)
        latents = latents[:, :, 0] if self.frames else latents
        return F.pixel_unshuffle(latents, self.patch).to(images.dtype)

    def _decode(self, latents: Tensor) -> Tensor:
        z = F.pixel_shuffle(latents, self.patch).to(self.vae.dtype)
        pictures = self.vae.decode(z[:, :, None] if self.frames else z).sample
        pictures = (pictures[:, :, 0] if self.frames else pictures).to(latents.dtype)
        if not self.transparent:
            return pictures
        opacity = (pictures[:, 3:] + 1) / 2
        return 1 + (pictures[:, :3] - 1) * opacity  # what is transparent is white

    def _in_parts(self, x: Tensor, code: Callable[[Tensor], Tensor], tile: int, overlap: int, grow: int, shrink: int) -> Tensor:
        """`code` of x (B, C, h, w): its output is `grow` times larger, `shrink` times smaller; tile and overlap in x's
        pixels."""
        pixels = x.shape[2] * x.shape[3] * grow**2
        if pixels > self.whole:
            return torch.cat([tiled(picture[None], code, tile, overlap, grow, shrink) for picture in x])
        at_once = 1 if is_invariant() else max(1, self.whole // pixels)  # a library's kernels are too many to ask each
        return torch.cat([code(aligned(part)) for part in x.split(at_once)])
