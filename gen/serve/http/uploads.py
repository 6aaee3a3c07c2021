"""Pictures that clients send: recognised by their bytes, their size known before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from PIL import Image

from gen.calls.keywords import PICTURES
from gen.calls.kinds import OBJECT, WHOLE, check_kind_of, shown
from gen.io.images import PictureError, alpha, open_header
from gen.io.validators import check_int
from gen.serve.http.errors import BadRequest
from gen.serve.http.settings import ServerSettings
from gen.serve.sent import SentPicture

FORMATS = ("PNG", "JPEG", "WEBP")
_SCAN = b"\xff\xda"
MAX_SCANS = 100  # of a progressive JPEG, each of which costs as much as the picture; 10 are usual
DEPTH = 2  # of lists of pictures
MAX_SIDE = 1 << 14  # pixels
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
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
        if image.format == "JPEG" and data.count(_SCAN) > MAX_SCANS:
            raise BadRequest(
                f"{name} is a JPEG of more than {MAX_SCANS} scans, which takes too long to read; save it anew.", name
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
        raise BadRequest(f"{name} is {shown(text)}; send a picture in base64.", name)
    if (match := _DATA_URL.match(text[:80])) is not None:
        text = text[match.end() :]
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{name} is no base64; send a picture's bytes in it, not a path or URL.", name) from None


def read_as(name: str, max_pixels: int, data: bytes) -> Image.Image:
    """`open_upload` as `SentPicture` reads: the bytes come last."""
    return open_upload(name, data, max_pixels)


def keep_upload(name: str, data: bytes, max_pixels: int) -> SentPicture:
    """A picture of bytes, checked as `open_upload` does and kept encoded."""
    return SentPicture.checked(data, partial(read_as, name, max_pixels))


def read_upload(name: str, text: Any, max_pixels: int) -> SentPicture:
    """A picture from base64, kept encoded."""
    return keep_upload(name, decode_base64(name, text), max_pixels)


def edited_where(name: str, max_pixels: int, data: bytes) -> Image.Image:
    """Our mask (white: made anew) of OpenAI's, whose transparent parts are edited.

    name: "mask", or "image" where the picture says itself what is edited. data: of its file.
    """
    picture = open_upload(name, data, max_pixels)
    opacity = alpha(picture)
    if opacity is None and name == "mask":
        raise BadRequest("mask has no transparency; what is transparent in it is made anew.", "mask")
    return Image.new("L", picture.size) if opacity is None else opacity.point(lambda value: 255 - value)


def read_pictures(arguments: Mapping[str, Any], settings: ServerSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments without pictures, pictures) of arguments in which pictures are base64; BadRequest for too many."""
    plain, left = dict(arguments), settings.max_inputs
    found: dict[str, Any] = {}

    def read(name: str, value: Any, depth: int = 0) -> Any:
        nonlocal left
        if isinstance(value, list) and depth < DEPTH:
            return [read(name, one, depth + 1) for one in value]
        left -= 1
        if left < 0:
            raise BadRequest(f"A request holds at most {settings.max_inputs} pictures; send fewer.", name)
        return read_upload(name, value, settings.max_pixels)

    for name in PICTURES:
        value = plain.get(name)
        if value is not None and (name, value) != ("negtome", "batch"):
            found[name] = read(name, plain.pop(name))
    if isinstance(regions := plain.get("regions"), Mapping):
        del plain["regions"]
        found["regions"] = {str(key): read(f"regions[{shown(key)}]", text, DEPTH) for key, text in regions.items()}
    if (layout := plain.pop("layout", None)) is not None:
        check_kind_of("layout", layout, OBJECT)
        found["layout"] = _layout(layout, read)
    return plain, found


def _layout(layout: Mapping[str, Any], read: Callable[..., SentPicture]) -> dict[str, Any]:
    values = dict(layout)
    check_texts_can_be_written(values)
    if values.get("painting") is not None:
        values["painting"] = read("layout.painting", values["painting"], DEPTH)
    for name in ("regions", "layers"):
        parts = values.get(name)
        if parts is None and (name == "layers" or values.get("layers") is not None):
            continue
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise BadRequest(f"layout.{name} is {shown(parts)}; give a list of objects.", "layout")
        values[name] = [dict(part) for part in parts]
        for i, part in enumerate(values[name]):
            if part.get("mask") is not None:
                part["mask"] = read(f"layout.{name}[{i}].mask", part["mask"], DEPTH)
    for side in ("height", "width"):
        if values.get(side) is not None:
            check_kind_of(f"layout.{side}", values[side], WHOLE)
            check_int(f"layout.{side}", values[side], 1, MAX_SIDE)
    return values


def check_texts_can_be_written(given: Any) -> None:
    """BadRequest for text that no file or terminal can hold: halves of characters, NUL."""
    for text in strings_in(given):
        if _UNWRITABLE.search(text):
            raise BadRequest("A text of the request holds NUL, or half of a character; send valid Unicode.")


def strings_in(value: Any) -> Iterator[str]:
    """Every text in plain data, however deep it is."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple):
            left += one
