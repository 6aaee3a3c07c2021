"""Pictures from outside as 8-bit pictures and tensors: the one reader of training and generation.

Whatever kind of pixels a picture has, it means the same to both: turned as its EXIF says, the first frame of an animation, what
is transparent on a background, 16 bits and floats scaled to 8 bits.
"""

from __future__ import annotations

import hashlib
import math
import stat
import struct
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gen.io.errors import RecipeError

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
Colour = tuple[int, int, int]

_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_header = threading.Lock()
ASPECT = 0.02  # shapes that differ by less are the same


MAX_FILE = 256 * 1024 * 1024  # bytes


class PictureError(ValueError):
    """A picture whose pixels cannot be used; the message says why."""


def open_header(file: Path | IO[bytes], formats: Sequence[str] = FORMATS) -> Image.Image:
    """`PIL.Image.open` for files that nobody vouches for. PictureError for more than MAX_PIXELS, where Pillow warns, or says
    nothing; its own errors for all else."""
    large = f"it has more than {MAX_PIXELS // 10**6} million pixels"
    try:
        with _header, warnings.catch_warnings():  # filters are the process's own: one thread at a time
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")  # of damaged tags, which are left alone
            image = Image.open(file, formats=list(formats))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise PictureError(large) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise PictureError(large)
    return image


def orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF has it; 1, upright, where that says nothing that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) and value in _TURNS else 1
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, struct.error, OverflowError):
        return 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once it is turned upright."""
    return image.size[::-1] if orientation(image) >= 5 else image.size


def flat(image: Image.Image, mode: str = "RGB", background: Colour = (255, 255, 255)) -> Image.Image:
    """A picture of any kind as "RGB" or "L": upright, what is transparent on the background, 8 bits.

    16-bit whole numbers are divided by 257. Floats are from 0 to 1, or else to 255 or 65535 if they reach beyond 2.
    PictureError for pixels that are NaN, negative or larger.
    """
    turn = orientation(image)
    image = _of_8_bits(image, background)
    if turn in _TURNS:
        image = image.transpose(_TURNS[turn])
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)
        return image.convert(mode)
    except ValueError:
        raise PictureError(f"it has pixels of the kind {image.mode}, which is not read; save it as RGB") from None


def alpha(image: Image.Image) -> Image.Image | None:
    """The opacity of a picture, upright, as "L"; None where it has none."""
    if not image.has_transparency_data:
        return None
    turn = orientation(image)
    opacity = image.convert("RGBA").getchannel("A")
    return opacity.transpose(_TURNS[turn]) if turn in _TURNS else opacity


def _of_8_bits(image: Image.Image, background: Colour) -> Image.Image:
    """What has more bits a channel as "L"; others as they are."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise PictureError("it has pixels that are NaN or infinite; save it with finite ones")
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "I":  # a container of 32 bits, in which Pillow keeps pictures of 8 or 16
        top = 255.0 if high <= 255 else 65535.0
    else:
        top = 1.0 if high <= 1.01 else 0.0 if high < 2 else 255.0 if high <= 255.5 else 65535.0
    if not top or high > top * 1.01 or low < -0.01 * top:
        raise PictureError(
            f"it has pixels from {low:g} to {high:g}; save it with values from 0 to 1, or with whole ones of 8 or 16 bits"
        )
    grey = (values.astype(np.float64) * (255 / top)).round().clip(0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    opacity = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opacity)))


def read_picture(name: str, source: Any, mode: str) -> Tensor:
    """(1, 3 or 1, H, W) in [0, 1] from a file, a PIL picture, an array (H, W[, 3]) of bytes, 16-bit numbers or truth values, a
    tensor (3 or 1, H, W) of floats, or a mask's array of floats (H, W).

    What is transparent is white, as the default model draws. A mask (mode "L") that holds only 0 and 1 of 255 is warned of.
    ValueError says what cannot be read.
    """
    if isinstance(source, str | Path):
        try:
            source = open_picture(source, FORMATS, decode=True)
        except RecipeError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(source, np.ndarray) and mode == "L" and source.dtype.kind == "f":  # what segmentation models give
        source = torch.from_numpy(np.ascontiguousarray(source, dtype=np.float32))
    if isinstance(source, np.ndarray):
        source = _of_array(name, source)
    if isinstance(source, Image.Image):
        try:
            array = np.asarray(flat(source, mode))
        except PictureError as error:
            raise ValueError(f"{name}: {error}.") from None
        if mode == "L" and _is_of_truth_values(source, array):
            warnings.warn(
                f"{name} holds only 0 and 1 of 255, so it is black nearly everywhere; multiply it by 255 where 1 means white.",
                stacklevel=3,
            )
        array = array[None] if mode == "L" else array.transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32) / 255)[None]
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


def _of_array(name: str, array: np.ndarray) -> Image.Image:
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    colour = array.ndim == 3 and array.shape[2] in (3, 4)
    if array.dtype not in (np.uint8, np.uint16, np.bool_) or not (grey or colour) or not array.size:
        raise ValueError(
            f"{name} is an array {array.shape} of {array.dtype}; give bytes of shape (H, W) or (H, W, 3), or 16-bit ones."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint16 and (colour or not grey):
        array = (array / 257).round().astype(np.uint8)
    return Image.fromarray(array.squeeze(-1) if grey and array.ndim == 3 else array)


def _is_of_truth_values(source: Image.Image, flattened: np.ndarray) -> bool:
    """Is the largest value 1 where it should be 255 or more?"""
    if source.mode in ("1", "F", "P", "PA") or source.has_transparency_data:
        return False
    values = np.asarray(source) if source.mode in ("I", "L") or source.mode.startswith("I;16") else flattened
    return bool(values.max(initial=0) == 1)


def same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Have two pictures (height, width) the same ratio of their sides, but for rounding?"""
    return math.isclose(first[0] * second[1], first[1] * second[0], rel_tol=ASPECT) or all(
        abs(a - b) <= 1 for a, b in zip(first, second, strict=True)
    )


def resize(picture: Tensor, height: int, width: int) -> Tensor:
    """(1, 3, H, W) in [0, 1] scaled to any shape, with 8 bits by Lanczos' filter, as image processors of diffusers do."""
    if picture.shape[-2:] == (height, width):
        return picture
    pixels = (picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    scaled = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    return torch.from_numpy(scaled).permute(2, 0, 1)[None].float() / 255


def fit(picture: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) cut to the wanted shape about the middle, then scaled."""
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


def digest(picture: Tensor) -> str:
    """sha256 of a picture's bytes, as it is used."""
    return hashlib.sha256((picture * 255).round().to(torch.uint8).numpy().tobytes()).hexdigest()


def open_picture(path: Path | str, formats: Sequence[str] = ("PNG",), decode: bool = False) -> Image.Image:
    """Open a picture from anywhere, its size checked before any pixel is decoded; RecipeError says what is wrong.

    formats: as Pillow names them; a file of any other is refused whatever its name.
    decode: read the pixels too, and close the file.
    """
    path = Path(path)
    allowed = " or ".join((", ".join(formats[:-1]), formats[-1]) if formats[1:] else formats)
    image = None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RecipeError(f"{path} is not a regular file; give the path of a {allowed}.")
        if status.st_size > MAX_FILE:
            raise RecipeError(f"{path} is larger than {MAX_FILE >> 20} MB; make it smaller first.")
        image = open_header(path, formats)
        if decode:
            image.load()
        opened_image, image = image, None
        return opened_image
    except RecipeError:
        raise
    except OSError as error:
        reason = error.strerror or f"it is not a {allowed}, or damaged"
        raise RecipeError(f"{path} cannot be opened ({reason}).") from None
    except (ValueError, SyntaxError) as error:
        raise RecipeError(f"{path} cannot be opened ({error}).") from None
    finally:
        if image is not None:
            image.close()
