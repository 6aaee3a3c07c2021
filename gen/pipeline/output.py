"""What a call returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen.pipeline.png import save_image
from gen.pipeline.recipe import Recipe

TYPES = ("pil", "np", "pt", "latent")


@dataclass
class Output:
    """What a call returns: pictures in the order asked for, their recipes and seeds, and evaluations per picture.

    images: PIL pictures, a numpy array (B, H, W, 3) or a tensor (B, 3, H, W) in [0, 1], or latents (B, C, h, w), on the CPU;
    None where `on_images` got them. An interrupted call holds the pictures it got to.
    """

    images: Any
    recipes: list[Recipe]
    seeds: list[int]
    nfe: float
    interrupted: bool = False

    @classmethod
    def of(
        cls, shown: Iterable[Tensor] | None, recipes: Sequence[Recipe], output_type: str, interrupted: bool = False
    ) -> Output:
        """shown: a tensor for each picture, as `gen.models.decoding.to_output_type` leaves it; None if none are kept."""
        nfe = sum(recipe.nfe for recipe in recipes) / len(recipes)
        return cls(
            None if shown is None else _as_type(shown, output_type),
            list(recipes),
            [recipe.seed for recipe in recipes],
            nfe,
            interrupted,
        )

    def save(self, path: Path | str, overwrite: bool = False, quality: int | None = None) -> list[Path]:
        """Write PIL pictures with their recipes: heart.png, or heart-0.png, heart-1.png, ... for several; .jpg, .webp and
        .avif likewise, with a quality from 1 to 100 (90)."""
        if self.images is None:
            raise ValueError("The pictures went to on_images and are not kept; save them there, or call without it.")
        if not isinstance(self.images, list):
            raise ValueError('Only PIL pictures are saved with their recipes; call with output_type="pil".')
        path = Path(path)
        names = [path] if len(self.images) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(self.images))]
        return [save_image(*entry, overwrite, quality) for entry in zip(self.images, names, self.recipes, strict=True)]


def _as_type(shown: Iterable[Tensor], output_type: str) -> Any:
    if output_type == "pil":
        return [Image.fromarray(picture.numpy()) for picture in shown]
    stacked = torch.stack(list(shown))
    return stacked.numpy() if output_type == "np" else stacked


def to_pil(array: np.ndarray) -> list[Image.Image]:
    """8-bit pictures of an array (B, H, W, 3) in [0, 1]."""
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
