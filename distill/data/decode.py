"""Pictures from bytes that nobody vouches for: bounded sizes, every kind of pixels as `gen.io.images` reads them."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from distill.data.report import Unusable
from gen.io.images import FORMATS, Colour, PictureError, flat, open_header, shown_size

MAX_BYTES = 64 << 20


def open_picture(data: bytes, least: int = 1) -> Image.Image:
    """Its header is read, its pixels are not. Unusable says what is wrong."""
    if not data:
        raise Unusable("is empty")
    try:
        image = open_header(BytesIO(data))
    except PictureError as error:
        raise Unusable(str(error).removeprefix("it ")) from None
    except Exception:  # decoders raise anything on bytes that are not theirs
        raise Unusable(f"is not a picture in one of {', '.join(FORMATS)}") from None
    if min(image.size) < least:
        raise Unusable(f"has a side of less than {least} pixels")
    return image


def probe(data: bytes, least: int = 1) -> tuple[int, int]:
    """(width, height) as shown, from the header alone. Unusable says what is wrong."""
    return shown_size(open_picture(data, least))


def decode(data: bytes, background: Colour = (255, 255, 255), least: int = 1) -> Image.Image:
    """The picture as RGB: turned as EXIF says, the first frame of an animation, what is transparent on the background, 16 bits
    rounded to 8. Unusable says what is wrong."""
    image = open_picture(data, least)
    try:
        image.load()
        return flat(image, background=background)
    except PictureError as error:
        raise Unusable(str(error).removeprefix("it ")) from None
    except Exception as error:  # decoders raise anything on damaged data
        raise Unusable(f"is damaged ({type(error).__name__})") from None
