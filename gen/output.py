"""What a call returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from gen.recipe import Recipe, save_image

TYPES = ("pil", "np", "pt", "latent")


@dataclass
class Output:
    """What a call returns: pictures in the order asked for, their recipes and seeds, and evaluations per picture.

    images: PIL pictures, a numpy array (B, H, W, 3) or a tensor (B, 3, H, W) in [0, 1], or latents (B, C, h, w).
    An interrupted call holds the pictures it got to.
    """

    images: Any
    recipes: list[Recipe]
    seeds: list[int]
    nfe: float
    interrupted: bool = False

    @classmethod
    def of(cls, shown: Tensor, recipes: Sequence[Recipe], output_type: str, interrupted: bool = False) -> Output:
        """shown: (B, ...), still a tensor."""
        nfe = sum(recipe.nfe for recipe in recipes) / len(recipes)
        return cls(_as_type(shown, output_type), list(recipes), [recipe.seed for recipe in recipes], nfe, interrupted)

    def save(self, path: Path | str, overwrite: bool = False) -> list[Path]:
        """Write PIL pictures as PNG with their recipes: heart.png, or heart-0.png, heart-1.png, ... for several."""
        if not isinstance(self.images, list):
            raise ValueError('Only PIL pictures are saved with their recipes; call with output_type="pil".')
        path = Path(path)
        names = [path] if len(self.images) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(self.images))]
        return [save_image(*one, overwrite) for one in zip(self.images, names, self.recipes, strict=True)]


def _as_type(shown: Tensor, output_type: str) -> Any:
    if output_type in ("latent", "pt"):
        return shown
    array = shown.permute(0, 2, 3, 1).cpu().numpy()
    return array if output_type == "np" else to_pil(array)


def to_pil(array: np.ndarray) -> list[Image.Image]:
    """8-bit pictures of an array (B, H, W, 3) in [0, 1]."""
    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
