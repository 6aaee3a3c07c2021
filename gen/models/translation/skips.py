"""An autoencoder with skip connections: what its encoder sees on the way, added where its decoder has the same resolution.

Pictures (B, 3, H, W) in [-1, 1], latents (B, C, h, w). Maps and what is added to them go from the coarsest resolution to the
finest, as the decoder meets them. Source: arXiv 2403.12036, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from gen.nn.autoencoder import Autoencoder


class SkipAutoencoder(Protocol):
    """An autoencoder whose encoder shows its maps and whose decoder takes something beside them.

    widths: (channels that are shown, channels that are added to), one pair for each skip connection.
    """

    widths: tuple[tuple[int, int], ...]

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(latents, maps), each map (B, C_k, H_k, W_k)."""

    def decode(self, latents: Tensor, added: Sequence[Tensor]) -> Tensor:
        """Pictures; `added` is one tensor (B, D_k, H_k, W_k) for each map."""


class OwnSkips:
    """Skips of `gen.nn.autoencoder.Autoencoder`: into every resolution of the decoder, from the encoder where it has that, else
    from the picture itself with its pixels rearranged (the encoder begins at a quarter of the resolution, or less)."""

    def __init__(self, autoencoder: Autoencoder):
        self.autoencoder: Any = autoencoder
        # positions behind which a level of the network begins, with its pixels per place
        self._seen = dict(_levels_down(autoencoder.encoder))
        self._joined = dict(_levels_up(autoencoder.decoder, autoencoder.factor))
        shown = dict(self._seen.values())
        self.widths = tuple((shown.get(scale, 3 * scale**2), width) for scale, width in self._joined.values())

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen: dict[int, Tensor] = {}

        def through(x: Tensor) -> Tensor:
            for index, layer in enumerate(self.autoencoder.encoder):
                x = layer(x)
                if index in self._seen:
                    seen[self._seen[index][0]] = x
            return x

        latents = self.autoencoder.encode(images, through)
        scales = [scale for scale, _ in self._joined.values()]
        return latents, [seen[scale] if scale in seen else F.pixel_unshuffle(images, scale) for scale in scales]

    def decode(self, latents: Tensor, added: Sequence[Tensor]) -> Tensor:
        places = dict(zip(self._joined, added, strict=True))

        def through(x: Tensor) -> Tensor:
            for index, layer in enumerate(self.autoencoder.decoder):
                x = layer(x)
                if index in places:
                    x = x + places[index].to(x.dtype)
            return x

        return self.autoencoder.decode(latents, through)


def _levels_down(encoder: nn.Module) -> Iterator[tuple[int, tuple[int, int]]]:
    """(position, (pixels per place, channels)) of every level of the encoder, which a convolution begins."""
    scale, layers = 1, list(encoder.children())
    for index, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.PixelUnshuffle):
            scale *= layer.downscale_factor
        elif isinstance(layer, nn.Conv2d):
            yield index, (scale, layer.out_channels)


def _levels_up(decoder: nn.Module, factor: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """The same of the decoder, whose levels begin after its first convolution and where pixels are rearranged."""
    layers: list[Any] = list(decoder.children())
    scale, width = factor, layers[0].out_channels
    yield 0, (scale, width)
    for index, layer in enumerate(layers[:-1]):
        if isinstance(layer, nn.Conv2d):
            width = layer.out_channels
        elif isinstance(layer, nn.PixelShuffle):
            scale, width = scale // layer.upscale_factor, width // layer.upscale_factor**2
            yield index, (scale, width)


class DiffusersSkips:
    """Skips of diffusers' AutoencoderKL behind ours (`gen.models.bridge.vae`): what enters each block on the way down is shown,
    and added to what enters the block on the way up that has the same resolution. Pictures are coded whole, never in tiles."""

    def __init__(self, autoencoder: Any):
        self.autoencoder, vae = autoencoder, autoencoder.vae
        self.down, self.up = list(vae.encoder.down_blocks), list(vae.decoder.up_blocks)
        widths = list(vae.config["block_out_channels"])
        shown = [widths[0], *widths[:-1]]
        joined = [widths[-1], *widths[:0:-1]]
        self.widths = tuple(zip(reversed(shown), joined, strict=True))

    def encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen: list[Tensor] = []

        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen.append(args[0])

        with _hooked(self.down, [see] * len(self.down)):
            latents = self.autoencoder._encode(images)
        return (latents - self.autoencoder.shift) * self.autoencoder.scale, seen[::-1]

    def decode(self, latents: Tensor, added: Sequence[Tensor]) -> Tensor:
        def adding(one: Tensor) -> Callable[..., Any]:
            return lambda module, args: (args[0] + one.to(args[0].dtype), *args[1:])

        with _hooked(self.up, [adding(one) for one in added]):
            return self.autoencoder._decode(latents / self.autoencoder.scale + self.autoencoder.shift)


@contextmanager
def _hooked(modules: Sequence[nn.Module], hooks: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Inside, a hook is called with what enters each module."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in zip(modules, hooks, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def skips_of(autoencoder: Any) -> SkipAutoencoder:
    """The skip connections that an autoencoder takes. ValueError for one that has no place for them."""
    if isinstance(autoencoder, Autoencoder):
        return OwnSkips(autoencoder)
    vae = getattr(autoencoder, "vae", None)
    if type(vae).__name__ == "AutoencoderKL" and not autoencoder.transparent and autoencoder.patch == 1:
        return DiffusersSkips(autoencoder)
    kind = "no autoencoder" if autoencoder is None else f"a {type(vae if vae is not None else autoencoder).__name__}"
    raise ValueError(
        f"Skip connections are for fewstep's autoencoder and diffusers' AutoencoderKL, and this model has {kind}; "
        "choose another model."
    )
