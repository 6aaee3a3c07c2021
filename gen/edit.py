"""Pictures to start from: image to image, and inpainting under a mask (`samplers.editing` has the mathematics)."""

from __future__ import annotations

import hashlib
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from gen import request
from gen.recipe import RecipeError, Start, open_picture

if TYPE_CHECKING:
    from gen.generator import Generator
    from samplers.path import NoiseLevel

FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Edit:
    """A picture (1, 3, H, W) in [0, 1] and its latents (1, C, h, w), as the denoiser sees them; the mask (1, 1, H, W), 1 where
    the picture is made anew, and as latents see it; how much of the schedule is run."""

    picture: Tensor
    latents: Tensor
    mask: Tensor | None
    latent_mask: Tensor | None
    start: Start

    def levels(self, levels: tuple[NoiseLevel, ...]) -> tuple[NoiseLevel, ...]:
        from samplers.editing import start_at

        return start_at(levels, self.start.strength)

    def keep_known(self, images: Tensor) -> Tensor:
        """Decoded pictures (B, 3, H, W) with what the mask keeps put back, to the pixel."""
        return images if self.mask is None else torch.lerp(self.picture.expand_as(images), images, self.mask)


def make_edit(generator: Generator, image: Any, mask: Any, strength: object, height: int, width: int) -> Edit | None:
    """None where no image is given. ValueError for anything that is not a usable picture, mask or strength."""
    if image is None:
        given = "mask" if mask is not None else "strength" if strength is not None else None
        if given:
            raise ValueError(f"{given} was given without an image to change; give image too.")
        return None
    usual = 0.8 if mask is None else 1.0
    amount = request.real("strength", usual if strength is None else strength, 0, 1)
    picture = _fit(read_picture("image", image, "RGB"), height, width)
    known = None if mask is None else _fit(read_picture("mask", mask, "L"), height, width)
    start = Start(image=_digest(picture), mask=None if known is None else _digest(known), strength=amount)

    device, factor = generator.device, generator.factor
    picture = picture.to(device)
    latents = picture * 2 - 1
    if generator.autoencoder is not None:
        with torch.no_grad():
            latents = generator.autoencoder.encode(latents).float() * generator.config.latent_scale
    known = None if known is None else known.to(device)
    # a latent that touches any pixel to be made is made
    latent_mask = None if known is None else F.max_pool2d(known, factor)
    return Edit(picture, latents, known, latent_mask, start)


def read_picture(name: str, source: Any, mode: str) -> Tensor:
    """(1, 3 or 1, H, W) in [0, 1] from a file, a PIL picture, an array (H, W[, 3]) of bytes or a tensor (3 or 1, H, W).

    Pictures of cameras that were held upright say so in EXIF; they are turned as every viewer shows them."""
    if isinstance(source, str | Path):
        try:
            source = open_picture(source, FORMATS, decode=True)
        except RecipeError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (1, 3, 4)):
            raise ValueError(f"{name} is an array {source.shape} of {source.dtype}; give bytes of shape (H, W) or (H, W, 3).")
        source = Image.fromarray(source.squeeze(-1) if source.ndim == 3 and source.shape[2] == 1 else source)
    if isinstance(source, Image.Image):
        source = upright(source)
        if source.mode in ("RGBA", "LA", "PA") or "transparency" in source.info:  # on white, as the default model draws
            source = source.convert("RGBA")
            source = Image.alpha_composite(Image.new("RGBA", source.size, "white"), source)
        array = np.asarray(source.convert(mode), dtype=np.float32) / 255
        array = array[None] if mode == "L" else array.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(array))[None]
    channels = 1 if mode == "L" else 3
    if not isinstance(source, Tensor):
        raise ValueError(f"{name} is {type(source).__name__}; give a file name, a PIL picture, an array or a tensor.")
    if source.ndim == 2 and channels == 1:
        source = source[None]
    if source.ndim == 3:
        source = source[None]
    if source.ndim != 4 or source.shape[:2] != (1, channels) or not source.is_floating_point():
        raise ValueError(f"{name} is a tensor {tuple(source.shape)}; give one picture ({channels}, H, W) of floats in [0, 1].")
    if not bool(((source >= 0) & (source <= 1)).all()):
        raise ValueError(f"{name} must hold numbers from 0 to 1; others, or NaN, were given.")
    return source.float().cpu()


def upright(picture: Image.Image) -> Image.Image:
    """Turned as its EXIF says; as it is where that says nothing that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(picture)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, struct.error):
        return picture


def _fit(picture: Tensor, height: int, width: int) -> Tensor:
    """Cut to the wanted shape about the middle, then scaled."""
    rows, columns = picture.shape[-2:]
    if (rows, columns) == (height, width):
        return picture
    tall, wide = min(rows, round(columns * height / width)), min(columns, round(rows * width / height))
    top, left = (rows - max(tall, 1)) // 2, (columns - max(wide, 1)) // 2
    picture = picture[..., top : top + max(tall, 1), left : left + max(wide, 1)]
    return F.interpolate(picture, (height, width), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def cut_to(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) scaled until both sides reach `size`, a height and width, then cut about the middle; as diffusers does after
    it made a picture at the nearest size that a model was trained at."""
    rows, columns = images.shape[-2:]
    if (rows, columns) == size:
        return images
    ratio = max(size[0] / rows, size[1] / columns)
    images = F.interpolate(images, (int(rows * ratio), int(columns * ratio)), mode="bilinear", align_corners=False)
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def _digest(picture: Tensor) -> str:
    """sha256 of a picture's bytes, as it is used."""
    return hashlib.sha256((picture * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()
