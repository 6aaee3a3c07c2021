"""Recipes in JPEG, WebP and AVIF: EXIF and XMP, which the formats have where PNG has text chunks.

The EXIF user comment is the `parameters` text in UTF-16, as AUTOMATIC1111 writes it; the maker's note is ours, "fewstep" and
the recipe as JSON; the unique id says of a picture of a batch which one it is. XMP has the prompt as the picture's description,
which programs for photographs show.
"""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING, Any

from PIL import Image

from gen.io.errors import RecipeError

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe

# suffix -> the format's name in Pillow
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}
QUALITY = 90
LOSSLESS = 100  # the quality at which WebP keeps every pixel
NOTE = b"fewstep\0"
_EXIF, _COMMENT, _MAKER_NOTE, _UNIQUE_ID = 0x8769, 0x9286, 0x927C, 0xA420
_LONGEST = 65_000  # bytes of EXIF or XMP in a JPEG, whose segments end at 65,533
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmp:CreatorTool="fewstep {version}"><dc:description><rdf:Alt><rdf:li xml:lang="x-default">{prompt}</rdf:li></rdf:Alt>
</dc:description></rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


def check_alpha(suffix: str, transparent: object) -> None:
    """RecipeError where a picture is transparent and files that end in `suffix` cannot be."""
    if transparent and FORMATS.get(suffix.lower()) == "JPEG":
        raise RecipeError(
            "A JPEG has no alpha, and the picture is transparent; save it as .png, .webp or .avif, or leave transparent out."
        )


def encoded(
    image: Image.Image, suffix: str, recipe: Recipe | None, quality: int | None = None, place: str | None = None
) -> bytes:
    """A picture as a file of a format other than PNG, with its recipe.

    suffix: of the file's name, one of FORMATS.
    quality: 1 to 100, 90 if None; at 100 WebP keeps every pixel.
    place: JSON that says which picture of a batch it is.
    Raises RecipeError for a recipe that is too long for a JPEG, for a transparent picture as one, and where Pillow was built
    without the format.
    """
    check_alpha(suffix, image.has_transparency_data)
    kind, quality = FORMATS[suffix.lower()], QUALITY if quality is None else quality
    options: dict[str, Any] = {"quality": quality}
    if kind == "WEBP":
        options |= {"lossless": quality == LOSSLESS, "method": 4}
    if kind == "JPEG" and quality >= QUALITY:
        options["subsampling"] = 0  # colours as sharp as brightness
    if recipe is not None:
        options |= {"exif": exif_of(recipe, place), "xmp": xmp_of(recipe)}
        if kind == "JPEG" and max(len(options["exif"]), len(options["xmp"])) > _LONGEST:
            raise RecipeError("The recipe is longer than a JPEG can hold (64 kB); save it as .png, .webp or .avif.")
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except KeyError:
        raise RecipeError(f"Pillow is installed without {kind} here; save as .png, or install another build.") from None
    return file.getvalue()


def exif_of(recipe: Recipe, place: str | None = None) -> bytes:
    """The user comment, the maker's note, and the place in a batch."""
    from gen.pipeline.infotext import to_infotext

    exif = Image.Exif()
    own = exif.get_ifd(_EXIF)
    own[_COMMENT] = b"UNICODE\0" + to_infotext(recipe).replace("\0", "\ufffd").encode("utf-16-be", "replace")
    own[_MAKER_NOTE] = NOTE + recipe.to_json().encode("ascii")
    if place is not None:
        own[_UNIQUE_ID] = place
    return exif.tobytes()


def xmp_of(recipe: Recipe) -> bytes:
    """The packet. What XML has no place for becomes the character that stands for such."""
    allowed = "".join("\ufffd" if (c < " " and c not in "\t\n") or c in "\ufffe\uffff" else c for c in recipe.prompt)
    return _XMP.format(version=escape(recipe.machine.fewstep), prompt=escape(allowed)).encode()


def recipe_json(exif: Image.Exif, most: int) -> str | None:
    """The JSON in the maker's note, if that is ours; cut to `most` characters."""
    note = exif.get_ifd(_EXIF).get(_MAKER_NOTE)
    if isinstance(note, bytes) and note.startswith(NOTE):
        return note[len(NOTE) : len(NOTE) + most].decode("ascii", "replace")
    return None


def place_json(exif: Image.Exif, most: int) -> str | None:
    """The JSON in the unique id, if that is ours; cut to `most` characters."""
    text = exif.get_ifd(_EXIF).get(_UNIQUE_ID)
    return text[:most] if isinstance(text, str) and text.startswith("{") else None
