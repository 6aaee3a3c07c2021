"""Pictures to start from: image to image, and inpainting under a mask (`samplers.editing` has the mathematics)."""

from __future__ import annotations

import hashlib
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from gen import request
from gen.kinds import Batch, Kind
from gen.recipe import Recipe, RecipeError, RestoreRecord, Start, open_picture

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.request import Item
    from gen.settings import Settings
    from samplers.denoiser import Denoiser
    from samplers.path import NoiseLevel
    from samplers.sample import Solver

FORMATS = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True)
class Edit(Kind):
    """A picture (1, 3, H, W) in [0, 1] and its latents (1, C, h, w), as the denoiser sees them; the mask (1, 1, H, W), 1 where
    the picture is made anew, and as latents see it; how much of the schedule is run."""

    picture: Tensor
    latents: Tensor
    mask: Tensor | None
    latent_mask: Tensor | None
    start: Start
    keeps = True

    @classmethod
    def make(cls, generator: Generator, asked: Mapping[str, Any], settings: Settings) -> Edit | None:
        given = (asked.get(name) for name in ("image", "mask", "strength"))
        return make_edit(generator, *given, settings.height, settings.width)

    @classmethod
    def again(cls, generator: Generator, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
        image, mask = given.get("image"), given.get("mask")
        if recipe.canvas is not None:
            from gen.canvas import replayed_pictures

            image, mask = replayed_pictures(recipe, image, mask)
        check_given(recipe.start or recipe.restore, image, mask)
        return {} if recipe.start is None else {"image": image, "mask": mask, "strength": recipe.start.strength}

    def change(self, generator: Generator, settings: Settings) -> Settings:
        from samplers.editing import start_at

        return replace(settings, levels=start_at(settings.levels, self.start.strength))

    def check(self, settings: Settings) -> None:
        if self.mask is not None and (settings.rules.guidance[0] == "cfg++" or settings.rules.both):
            raise ValueError(
                "cfg++ moves the whole picture, also what a mask keeps; choose other guidance for inpainting, and a sampler "
                "other than *_cfg_pp."
            )

    def verify(self, recipe: Recipe) -> None:
        check_same(self.start, recipe.start)

    def begin(self, x: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return level.mix(self.latents, noise)

    def around(self, denoiser: Denoiser, solver: Solver, batch: Batch) -> tuple[Denoiser, Solver]:
        if self.mask is None:
            return denoiser, solver
        from samplers.editing import Inpaint

        return Inpaint(denoiser, self.latents, self.latent_mask, batch.noise), solver

    def keep_known(self, images: Tensor) -> Tensor:
        """Decoded pictures (B, 3, H, W) with what the mask keeps put back, to the pixel."""
        return images if self.mask is None else torch.lerp(self.picture.expand_as(images), images, self.mask)

    def recorded(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"start": self.start}


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


def check_given(start: Start | RestoreRecord | None, image: Any, mask: Any) -> None:
    """ValueError unless a replay is given the image and mask that a recipe began with, and no others."""
    for name, given, needed in (("image", image, start is not None), ("mask", mask, bool(start and start.mask))):
        article = "an" if name == "image" else "a"
        if needed and given is None:
            raise ValueError(
                f"The picture was made from {article} {name}, which is not in its recipe; give it as {name} (--{name})."
            )
        if given is not None and not needed:
            raise ValueError(f"The picture was made without {article} {name}; leave it out.")


def check_same(used: Start | RestoreRecord, recorded: Start | RestoreRecord | None) -> None:
    """ValueError unless a replay begins with the recipe's image and mask."""
    if recorded is not None and used != recorded:
        changed = "image" if used.image != recorded.image else "mask"
        raise ValueError(f"This {changed} is not the one that the picture was made from: its sha256 differs.")


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
