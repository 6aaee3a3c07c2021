"""Formats of pictures that are sent: PNG, and with a quality JPEG, WebP and AVIF, the recipe in each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from gen.calls.kinds import WHOLE, check_kind_of, shown
from gen.io.validators import check_int
from gen.pipeline.exif import encoded
from gen.pipeline.png import encode_png
from gen.pipeline.recipe import Recipe
from gen.serve.http.errors import BadRequest
from samplers.lookup import nearest

ENDINGS = {"png": "png", "jpeg": "jpg", "webp": "webp", "avif": "avif"}  # name -> what files of it end in
SPELLINGS = {**{name: name for name in ENDINGS}, "jpg": "jpeg"}


@dataclass(frozen=True)
class PictureFormat:
    """name: of ENDINGS. quality: 1 to 100, None for the usual one; at 100 WebP keeps every pixel, as PNG always does."""

    name: str = "png"
    quality: int | None = None

    @classmethod
    def asked(cls, name: Any, quality: Any, called: str = "quality") -> PictureFormat:
        """Of a request, whose field of the quality is `called`; BadRequest for a format or quality that there is not."""
        given = "png" if name is None else str(name).lower()
        if given not in SPELLINGS:
            near = nearest(given, SPELLINGS)
            hint = f"; did you mean {near}?" if near else "."
            raise BadRequest(f"output_format is {shown(name)}, and there are {', '.join(ENDINGS)}{hint}", "output_format")
        if quality is not None:
            check_kind_of(called, quality, WHOLE)
            check_int(called, quality, 0, 100)
            if given == "png":
                says = f"{called} says nothing of a PNG, which keeps every pixel; give output_format jpeg, webp or avif too."
                raise BadRequest(says, called)
        return cls(SPELLINGS[given], None if quality is None else max(quality, 1))

    @property
    def ending(self) -> str:
        """Of files, without the dot."""
        return ENDINGS[self.name]

    @property
    def media_type(self) -> str:
        return f"image/{self.name}"

    def encode(self, image: Image.Image, recipe: Recipe | None = None) -> bytes:
        """A file's bytes. RecipeError where the format cannot hold the recipe, or Pillow does not write it."""
        if self.name == "png":
            return encode_png(image, recipe)
        return encoded(image, f".{self.ending}", recipe, self.quality)


PNG = PictureFormat()
