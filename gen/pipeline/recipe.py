"""The recipe of a picture: everything it takes to make it again, kept inside its PNG.

Two text chunks: `parameters`, the line that image viewers and AUTOMATIC1111 read (`gen.pipeline.infotext`), and `fewstep`, the
recipe as JSON, from which `Generator.replay` and `fewstep replay` work. There is no date and no path in it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image, PngImagePlugin
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gen.io.images import open_header
from samplers.atomic import written

CHUNK = "fewstep"
MAX_FILE = 256 * 1024 * 1024
MAX_TEXT = 1_000_000  # characters of a comment; PNG text is bounded by Pillow
READ = ("PNG", "JPEG", "WEBP", "GIF")  # where recipes are looked for

MAX_WHOLE = 10**300  # larger whole numbers have no floating-point value


def _has_float(value: object) -> object:
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, int) and abs(one) > MAX_WHOLE:
            raise ValueError("a whole number is larger than any that is used")
    return value


Option = Annotated[bool | int | float | str | tuple[int | float, ...], AfterValidator(_has_float)]
Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(max_length=300)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Side = Annotated[int, Field(ge=1, le=16_384)]
Extent = Annotated[int, Field(ge=0, le=16_384)]


class RecipeError(ValueError):
    """A picture whose recipe cannot be read or written; the message names the file and says why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Model(_Part):
    """name: "default", a hub id or a folder's own name; weights: part -> sha256 of its file (empty: made in memory)."""

    name: Name
    weights: dict[Name, Digest] = {}


class Batch(_Part):
    """How many pictures went through the network together and which one this was: rounding depends on the number."""

    size: int = Field(1, ge=1, le=1024)
    row: int = Field(0, ge=0, lt=1024)


class Machine(_Part):
    """What the numbers were computed with. threads is 0 where the device has no such setting."""

    device: Name
    dtype: Name
    attention: Name
    threads: int = Field(0, ge=0, le=4096)
    torch: Name
    fewstep: Name


class Start(_Part):
    """What an edit began with: sha256 of the image's bytes and the mask's, brought to the picture's size, and the strength."""

    image: Digest
    mask: Digest | None = None
    strength: float = Field(ge=0, le=1)


class GuideRecord(_Part):
    """Guidance by an energy of the closed table; energy is "" for the maker's own code or models, which no recipe names."""

    energy: Name = ""
    method: Name
    strength: float = Field(ge=0, le=1e6)
    options: dict[Name, Option] = {}


class RestoreRecord(_Part):
    """What a restoration began with: sha256 of the picture's bytes and the mask's, brought to size, and how it was measured."""

    task: Name
    image: Digest
    mask: Digest | None = None
    options: dict[Name, Option] = {}


class RegionRecord(_Part):
    """A region of a layout: box (left, top, width, height) in pixels, or a mask of latents as compressed bytes in base64."""

    prompt: Text
    negative_prompt: Text | None = None
    box: tuple[float, float, float, float] | None = None
    mask: Annotated[str, Field(max_length=100_000)] | None = None
    soft: float = Field(0.0, ge=0, le=1024)
    weight: float = Field(1.0, gt=0, le=1e6)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    adapters: dict[Name, float] | None = None


class LayoutRecord(_Part):
    """Prompts by region (`gen.tasks.layout`). background: the prompt of the rest; bootstrap: a log-SNR; window: pixels."""

    background: Text | None = None
    regions: tuple[RegionRecord, ...] = Field(min_length=1, max_length=64)
    bootstrap: float | None = None
    window: int | None = Field(None, ge=1, le=16_384)
    at_once: int | None = Field(None, ge=1, le=64)


class First(_Part):
    """The first picture of a batch, where the others were made to differ from it."""

    prompt: Text = ""
    negative_prompt: Text = ""
    class_label: int = Field(-1, ge=-1)
    seed: int = Field(ge=0, lt=1 << 63)


class TweakRecord(_Part):
    """A change of the run beside guidance (`gen.tasks.training_free`): sha256 of its pictures or embedding and of their masks,
    its texts, an
    energy of the closed table ("" for none, or the maker's own code), numbers, and the picture that the batch began with."""

    digests: tuple[Digest, ...] = ()
    masks: tuple[Digest, ...] = ()
    texts: tuple[Text, ...] = ()
    energy: Name = ""
    options: dict[Name, Option] = {}
    first: First | None = None


class CanvasRecord(_Part):
    """A canvas of windows, in pixels, height before width. circular: vertically, horizontally. batch: rows per network call, at
    most. shift_from: the log-SNR from which windows move at every step. prompts: several, spread along the width. sync: the
    strength of SyncDiffusion, sync_distance "" for the maker's own function. recurrence: passes of every step. extend: left,
    top, right, bottom of the picture that was painted around."""

    kind: Literal["panorama", "outpaint", "upscale"]
    window: tuple[Side, Side]
    stride: tuple[Side, Side]
    weights: Name = "linear"
    circular: tuple[bool, bool] = (False, False)
    batch: int = Field(8, ge=1, le=1024)
    prompts: tuple[Text, ...] = Field((), max_length=100)
    sync: float = Field(0.0, ge=0, le=1e6)
    sync_distance: Name = "latent"
    recurrence: int = Field(1, ge=1, le=100)
    extend: tuple[Extent, Extent, Extent, Extent] | None = None
    shift_from: float | None = Field(None, ge=-20, le=20)

    @model_validator(mode="after")
    def _says_where(self) -> CanvasRecord:
        if (self.kind == "outpaint") != (self.extend is not None):
            raise ValueError("extend belongs to outpaint, and only to it")
        return self


class ViewsRecord(_Part):
    """A picture that is read in several ways (`gen.tasks.views`): the prompts of its views, beside the picture's own."""

    prompts: tuple[Text, ...] = Field(min_length=1, max_length=8)
    views: tuple[Name, ...] = Field(min_length=1, max_length=8)
    pixels_from: float = Field(ge=-20, le=20)


class Recipe(_Part):
    """One picture's recipe. `unrecorded` names what took part and is not in here: with any of it, a replay will differ."""

    version: Literal[1, 2, 3] = Field(3, description="1, 2: before some defaults changed (`gen.pipeline.recipe_versions`)")
    prompt: Text = ""
    negative_prompt: Text = ""
    class_label: int | None = Field(None, ge=-1)
    seed: int = Field(ge=0, lt=1 << 63)
    height: Side
    width: Side
    made_at: tuple[Side, Side] | None = Field(None, description="height and width it was made at, where it was cut afterwards")
    num_inference_steps: int = Field(ge=1, le=1000)
    sampler: Name
    sampler_options: dict[Name, Option] = {}
    schedule: Name
    schedule_options: dict[Name, Option] = {}
    guidance_scale: float = Field(ge=0, le=100)
    guidance_interval: tuple[float, float] | None = None
    guidance: Name = "cfg"
    guidance_options: dict[Name, Option] = {}
    cache: Name = ""
    cache_options: dict[Name, Option] = {}
    start: Start | None = None
    guide: GuideRecord | None = None
    restore: RestoreRecord | None = None
    layout: LayoutRecord | None = None
    tweaks: dict[Name, TweakRecord] = {}
    canvas: CanvasRecord | None = None
    views: ViewsRecord | None = None
    adapters: dict[Name, float] = {}
    composition: Name = Field("", description="how several adapters act; merged where it is empty")
    composition_options: dict[Name, Option] = {}
    regions: dict[Name, Digest] = Field({}, description="adapter -> sha256 of the mask that it acts in")
    adapter_files: dict[Name, Digest] | None = Field(None, description="name -> sha256 of the adapter's file")
    stopped_at: int | None = Field(None, ge=1, description="steps done when the run was interrupted")
    unrecorded: tuple[Name, ...] = ()
    nfe: float = Field(ge=0, description="network evaluations for this picture")
    model: Model
    batch: Batch = Batch()
    batch_invariant: bool = Field(False, description="no bit of it depends on the batch")
    machine: Machine

    def to_json(self) -> str:
        """ASCII JSON on one line: safe in any text chunk."""
        import json

        return json.dumps(self.model_dump(mode="json", exclude_none=True), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """A recipe from its JSON; RecipeError says what is wrong with it."""
        from gen.pipeline.recipe_versions import upgraded

        try:
            return upgraded(cls.model_validate_json(text))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the text"
            if where == "version" and isinstance(first.get("input"), int) and first["input"] > 3:
                raise RecipeError(
                    f"the recipe has version {first['input']}; this fewstep reads versions 1 to 3, a newer one reads it."
                ) from None
            raise RecipeError(f"the recipe is damaged or not ours ({where}: {first['msg'].lower()}).") from None


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


def save_image(image: Image.Image, path: Path | str, recipe: Recipe | None = None, overwrite: bool = False) -> Path:
    """Write a PNG in one piece: the whole picture under its name, or nothing. Returns the path.

    RecipeError if the name does not end in .png, if a file of that name exists and `overwrite` is not set, or if the
    folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise RecipeError(f"{path}: pictures are saved as PNG, which holds their recipe; give a name that ends in .png.")
    try:
        with written(path, overwrite) as temporary, open(temporary, "xb") as file:
            image.save(file, "PNG", pnginfo=None if recipe is None else png_chunks(recipe))
    except FileExistsError:
        raise RecipeError(f"{path} exists already; choose another name, or pass overwrite=True.") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be written ({error.strerror or error}).") from None
    return path


def open_picture(path: Path | str, formats: Sequence[str] = ("PNG",), decode: bool = False) -> Image.Image:
    """Open a picture from anywhere, its size checked before any pixel is decoded; RecipeError says what is wrong.

    formats: as Pillow names them; a file of any other is refused whatever its name. decode: read the pixels too, and close the
    file.
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
        found, image = image, None
        return found
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


def read_chunks(path: Path | str) -> dict[str, str]:
    """The text chunks of a PNG by name, without decoding its pixels unless they stand before the text; of a JPEG, WebP or GIF
    the user comment of its EXIF or its comment, where other programs keep what a PNG has as "parameters"."""
    with open_picture(path, READ) as image:
        if image.format != "PNG":
            return _comments(image)
        found = {key: value for key, value in image.info.items() if isinstance(value, str)}
        if CHUNK in found or "parameters" in found:
            return found
        try:
            return {**found, **{key: str(value) for key, value in image.text.items()}}
        except (OSError, ValueError, SyntaxError) as error:
            raise RecipeError(f"{path} is damaged ({error}).") from None


def _comments(image: Image.Image) -> dict[str, str]:
    """`parameters`, or a recipe of ours, from the comments of a picture that is no PNG; of several the first with a text."""
    found: list[object] = []
    try:
        exif = image.getexif()
        found = [exif.get_ifd(0x8769).get(0x9286), exif.get(0x9286), exif.get(0x010E)]  # user comment, image description
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        pass  # damaged EXIF holds no recipe
    for value in (*found, image.info.get("comment")):
        text = _comment(value) if isinstance(value, bytes) else value
        if isinstance(text, str) and text.strip("\0 \n"):
            text = text.strip("\0 \n")[:MAX_TEXT]
            return {CHUNK if text.startswith('{"version"') else "parameters": text}
    return {}


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
