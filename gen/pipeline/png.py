"""Recipes in pictures: two text chunks of a PNG, `parameters` as other programs read it and `fewstep`, the recipe as JSON.

`gen.pipeline.exif` says where they are in a JPEG, WebP or AVIF.
"""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import cast

from PIL import Image, PngImagePlugin

from gen.io.errors import RecipeError
from gen.io.images import open_picture
from gen.pipeline.exif import FORMATS, encoded, place_json, recipe_json
from gen.pipeline.recipe import Recipe
from samplers.atomic import written

CHUNK = "fewstep"
PLACE = "batch"  # which picture of a batch it is, as JSON
RUNS = {"compress_type": 3}  # zlib's Z_RLE: a third of the time for as many bytes (`python -m tests.benchmarks.batch --png`)
MAX_TEXT = 1_000_000  # characters of a comment; PNG text is bounded by Pillow
READ = ("PNG", "JPEG", "WEBP", "AVIF", "GIF")  # where recipes are looked for


def free_name(path: Path | str) -> Path:
    """The path itself, or with -1, -2, ... before its suffix if files of that name exist."""
    path = Path(path)
    candidate, n = path, 0
    while os.path.lexists(candidate):
        n += 1
        candidate = path.with_name(f"{path.stem}-{n}{path.suffix}")
    return candidate


def png_chunks(recipe: Recipe) -> PngImagePlugin.PngInfo:
    """The two text chunks; text beyond Latin-1 goes to an iTXt chunk, as PNG demands."""
    from gen.pipeline.infotext import to_infotext

    info = PngImagePlugin.PngInfo()
    line = to_infotext(recipe).replace("\0", "\ufffd")  # NUL ends a PNG text field; the JSON keeps it
    try:
        line.encode("latin-1")
        info.add_text("parameters", line)
    except UnicodeEncodeError:
        info.add_itxt("parameters", line)
    info.add_text(CHUNK, recipe.to_json())
    return info


def encode_png(image: Image.Image, recipe: Recipe | None = None) -> bytes:
    """The bytes of a PNG, with the recipe in it."""
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=None if recipe is None else png_chunks(recipe), **RUNS)
    return file.getvalue()


def save_image(
    image: Image.Image, path: Path | str, recipe: Recipe | None = None, overwrite: bool = False, quality: int | None = None
) -> Path:
    """Write a picture in one piece: the whole of it under its name, or nothing. Returns the path.

    path: ends in .png, which keeps every pixel, or in .jpg, .webp or .avif.
    quality: of those, 1 to 100, 90 if None; at 100 WebP keeps every pixel too.
    RecipeError for another ending, if a file of that name exists and `overwrite` is not set, if the folder cannot be written
    to, or if the format cannot hold the recipe.
    """
    path = Path(path)
    check_suffix(path)
    try:
        with written(path, overwrite) as temporary, open(temporary, "xb") as file:
            is_png = path.suffix.lower() == ".png"
            file.write(encode_png(image, recipe) if is_png else encoded(image, path.suffix, recipe, quality))
    except FileExistsError:
        raise RecipeError(f"{path} exists already; choose another name, or pass overwrite=True.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror or error}).") from None
    return path


def check_suffix(path: Path) -> None:
    """RecipeError for the name of a format that holds no recipe."""
    if path.suffix.lower() not in FORMATS:
        raise RecipeError(
            f"{path}: pictures are saved as PNG, JPEG, WebP or AVIF, which hold their recipe; give a name that ends in .png, "
            ".jpg, .webp or .avif."
        )


def read_chunks(path: Path | str) -> dict[str, str]:
    """The text chunks of a PNG by name, without decoding its pixels unless they stand before the text; of a JPEG, WebP, AVIF
    or GIF the user comment of its EXIF or its comment, where other programs keep what a PNG has as "parameters"."""
    with open_picture(path, READ) as image:
        if image.format != "PNG":
            return _comments(image)
        texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
        if CHUNK in texts or "parameters" in texts:
            return texts
        try:
            return {**texts, **{key: str(value) for key, value in cast("PngImagePlugin.PngImageFile", image).text.items()}}
        except (OSError, ValueError, SyntaxError) as error:
            raise RecipeError(f"{path} is damaged ({error}).") from None


def _comments(image: Image.Image) -> dict[str, str]:
    """`parameters`, or a recipe of ours, from the comments of a picture that is no PNG; of several the first with a text."""
    values: list[object] = []
    texts: dict[str, str] = {}
    try:
        exif = image.getexif()
        if (own := recipe_json(exif, MAX_TEXT)) is not None:
            texts[CHUNK] = own
        if (place := place_json(exif, MAX_TEXT)) is not None:
            texts[PLACE] = place
        values = [exif.get_ifd(0x8769).get(0x9286), exif.get(0x9286), exif.get(0x010E)]  # user comment, image description
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        pass  # damaged EXIF holds no recipe
    for value in (*values, image.info.get("comment")):
        text = _comment(value) if isinstance(value, bytes) else value
        if isinstance(text, str) and text.strip("\0 \n"):
            text = text.strip("\0 \n")[:MAX_TEXT]
            return {CHUNK if text.startswith('{"version"') else "parameters": text} | texts
    return texts


def _comment(value: bytes) -> str:
    """An EXIF user comment: eight bytes that name its encoding, then the text. UTF-16 comes in either order of bytes."""
    value = value[: 2 * MAX_TEXT]
    head, body = value[:8], value[8:]
    if head == b"UNICODE\0":
        big = body.startswith(b"\xfe\xff") or (not body.startswith(b"\xff\xfe") and body[0::2].count(0) >= body[1::2].count(0))
        return body.decode("utf-16-be" if big else "utf-16-le", "replace").lstrip("\ufeff")
    if head in (b"ASCII\0\0\0", bytes(8)):
        value = body
    return value.decode("utf-8", "replace")


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a picture; RecipeError if there is none or it cannot be read."""
    chunks = read_chunks(path)
    if CHUNK not in chunks:
        other = "; it holds a parameters text of another program" if "parameters" in chunks else ""
        raise RecipeError(f"{path} holds no fewstep recipe{other}.")
    try:
        return Recipe.from_json(chunks[CHUNK])
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
