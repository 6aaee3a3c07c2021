"""Pictures that clients send: recognised by their bytes, their size known before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
from typing import Any

from PIL import Image

from gen.io.images import PictureError, open_header
from gen.serve.http.errors import BadRequest

FORMATS = ("PNG", "JPEG", "WEBP")
_DATA_URL = re.compile(r"data:image/[a-z+.-]{1,30};base64,", re.IGNORECASE)


def open_upload(name: str, data: bytes, max_pixels: int) -> Image.Image:
    """A decoded picture of bytes. BadRequest for other formats, damaged ones, and more than `max_pixels` pixels."""
    if not data:
        raise BadRequest(f"{name} is empty; send a PNG, JPEG or WebP.", name)
    try:
        image = open_header(io.BytesIO(data), FORMATS)
        if image.width * image.height > max_pixels:
            raise BadRequest(
                f"{name} has {image.width} x {image.height} pixels, and {max_pixels} are the most here; make it smaller.", name
            )
        image.load()
    except BadRequest:
        raise
    except PictureError as error:
        raise BadRequest(f"{name} is not read: {error}.", name) from None
    except Exception:  # of Pillow's readers, any
        raise BadRequest(f"{name} is no PNG, JPEG or WebP, or it is damaged; send another.", name) from None
    return image


def decode_base64(name: str, text: Any) -> bytes:
    """Bytes of base64, also as a data: URL. BadRequest for any other text: no URL and no path is followed."""
    if not isinstance(text, str):
        raise BadRequest(f"{name} is no text; send a picture in base64.", name)
    if (match := _DATA_URL.match(text[:80])) is not None:
        text = text[match.end() :]
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{name} is no base64; send a picture's bytes in it, not a path or URL.", name) from None


def read_upload(name: str, text: Any, max_pixels: int) -> Image.Image:
    """A picture from base64."""
    return open_upload(name, decode_base64(name, text), max_pixels)
