"""Pictures from bytes that nobody vouches for: five formats, bounded sizes, every mode as RGB on a background."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from distill.sources.report import Unusable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 64 << 20
Colour = tuple[int, int, int]


def _open(data: bytes, least: int) -> Image.Image:
    if not data:
        raise Unusable("is empty")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise Unusable(f"has more than {MAX_PIXELS // 1_000_000} million pixels") from None
    except Exception:  # decoders raise anything on bytes that are not theirs
        raise Unusable(f"is not a picture in one of {', '.join(FORMATS)}") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unusable(f"has more than {MAX_PIXELS // 1_000_000} million pixels")
    if min(width, height) < least:
        raise Unusable(f"has a side of less than {least} pixels")
    return image


def probe(data: bytes, least: int = 1) -> tuple[int, int]:
    """(width, height) as shown, from the header alone. Unusable says what is wrong."""
    image = _open(data, least)
    width, height = image.size
    try:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:
        turned = False
    return (height, width) if turned else (width, height)


def decode(data: bytes, background: Colour = (255, 255, 255), least: int = 1) -> Image.Image:
    """The picture as RGB: turned as EXIF says, the first frame of an animation, what is transparent on the background, 16 bits
    rounded to 8. Unusable says what is wrong."""
    image = _open(data, least)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
        return image.convert("RGB")
    except Exception as error:  # decoders raise anything on damaged data
        raise Unusable(f"is damaged ({type(error).__name__})") from None
