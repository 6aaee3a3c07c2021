"""OpenRaster: several layers in one file, as Krita, GIMP and MyPaint read them.

A zip whose first member `mimetype` says what it is, stored; `stack.xml`, the layers with names and places, the topmost first; a
PNG with straight alpha for each; `mergedimage.png`, what all look like together; and a thumbnail. Source: the specification,
https://www.freedesktop.org/specifications/openraster, version 0.0.5.

Files come from anywhere: how many members they have and how large these are is known before anything is read, no member is
written to a disk, and XML with entities is refused.
"""

from __future__ import annotations

import io
import itertools
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen.io.alpha import divided, flattened, halved, premultiply, straighten
from gen.io.errors import CheckpointError, opened
from gen.io.images import MAX_PIXELS, PictureError, open_header
from gen.io.members import read_member
from gen.io.weights import write_bytes

MIMETYPE = b"image/openraster"
PLAIN = ("svg:src-over", "")
MAX_LAYERS, MAX_DEPTH = 256, 16
MAX_XML, MAX_MEMBER, MAX_MEMBERS = 1 << 20, 256 << 20, 2000  # bytes, bytes, members
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)  # what zipfile raises for files that are
THUMBNAIL = 256  # pixels, of the longer side
BAND = 1 << 18  # pixels that are numbers at a time
VERSION = "0.0.3"  # the oldest that has all that is written here


class LayersError(ValueError):
    """A file of layers that cannot be read; the message says which and why."""


@dataclass(frozen=True)
class LayerImage:
    """One layer. picture: RGBA, 8 bits, colours not multiplied by alpha; its top left corner is at (x, y). opacity: 0 to 1."""

    name: str
    picture: Image.Image
    x: int = 0
    y: int = 0
    opacity: float = 1.0
    visible: bool = True


@dataclass(frozen=True)
class LayerStack:
    """Layers of a canvas of (width, height) pixels, the lowest first."""

    width: int
    height: int
    layers: tuple[LayerImage, ...] = field(default_factory=tuple)

    def placed(self, layer: LayerImage, first: int = 0, end: int | None = None) -> Tensor:
        """(1, 4, end - first, width): a layer on these rows of the canvas, all of them if nothing is said, colours times alpha,
        with its opacity; nothing where it is hidden."""
        end = self.height if end is None else end
        rows = torch.zeros(1, 4, end - first, self.width, dtype=torch.float64)
        top, left = max(layer.y, first), max(layer.x, 0)
        bottom, right = min(layer.y + layer.picture.height, end), min(layer.x + layer.picture.width, self.width)
        if layer.visible and bottom > top and right > left:
            part = layer.picture.crop((left - layer.x, top - layer.y, right - layer.x, bottom - layer.y))
            rows[..., top - first : bottom - first, left:right] = premultiply(to_tensor(part)) * layer.opacity
        return rows

    def flatten(self) -> Image.Image:
        """What all layers look like together, RGBA."""

        def together(first: int, end: int) -> Tensor:
            nothing = torch.zeros(1, 4, end - first, self.width, dtype=torch.float64)
            return flattened(itertools.chain([nothing], (self.placed(layer, first, end) for layer in self.layers)))

        return picture_of(together, self.height, self.width)


def to_tensor(picture: Image.Image) -> Tensor:
    """(1, 4, H, W) in [0, 1], straight, of a picture as RGBA."""
    array = np.array(picture.convert("RGBA"))
    return torch.from_numpy(array).permute(2, 0, 1)[None].double() / 255


def to_picture(layer: Tensor) -> Image.Image:
    """The RGBA picture of a layer (1, 4, H, W) with colours times alpha."""
    return picture_of(lambda first, end: layer[..., first:end, :], *layer.shape[2:])


def picture_of(rows: Callable[[int, int], Tensor], height: int, width: int) -> Image.Image:
    """The RGBA picture of a layer that is made in bands, so that few of its pixels are numbers at a time.

    rows: (first, end) -> those rows (1, 4, end - first, width), colours times alpha.
    """
    picture = torch.empty(height, width, 4, dtype=torch.uint8)
    seen = torch.empty(height, width, dtype=torch.bool)
    smaller = []
    step = max(BAND // max(width, 1) // 2, 1) * 2  # even, so that squares of two pixels lie in one band
    for first in range(0, height, step):
        end = min(first + step, height)
        band = rows(first, end)
        seen[first:end] = band[0, 3] > 0
        picture[first:end] = _bytes_of(divided(band))
        smaller.append(halved(band))
    if not bool(seen.all()) and max(height, width) > 1:
        around = straighten(torch.cat(smaller, 2))[:, :3]
        for first in range(0, height, step):
            end = min(first + step, height)
            near = around[..., first // 2 : (end + 1) // 2, :].repeat_interleave(2, 2).repeat_interleave(2, 3)
            colours = _bytes_of(near[..., : end - first, :width])
            hidden = ~seen[first:end]
            picture[first:end, :, :3][hidden] = colours[hidden]
    return Image.fromarray(picture.numpy())


def _bytes_of(values: Tensor) -> Tensor:
    """(H, W, C) of values (1, C, H, W) in [0, 1]."""
    return (values[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu()


# ---- writing ----


def write_openraster(path: Path | str, stack: LayerStack) -> Path:
    """Write a file in one piece. The same layers give the same bytes."""
    root = ElementTree.Element("image", version=VERSION, w=str(stack.width), h=str(stack.height))
    listed = ElementTree.SubElement(root, "stack")
    members: list[tuple[str, bytes]] = []
    for number, layer in reversed(list(enumerate(stack.layers))):
        name = f"data/layer{number:03}.png"
        shown = {"name": layer.name, "src": name, "x": str(layer.x), "y": str(layer.y), "opacity": f"{layer.opacity:g}"}
        more = {"visibility": "visible" if layer.visible else "hidden", "composite-op": PLAIN[0]}
        ElementTree.SubElement(listed, "layer", {**shown, **more})
        members.append((name, _png(layer.picture)))
    whole = stack.flatten()
    small = whole.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    xml = b"<?xml version='1.0' encoding='UTF-8'?>\n" + ElementTree.tostring(root, encoding="utf-8")
    members += [("mergedimage.png", _png(whole)), ("Thumbnails/thumbnail.png", _png(small))]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in (("mimetype", MIMETYPE), ("stack.xml", xml), *members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED if name == "stack.xml" else zipfile.ZIP_STORED
            file.writestr(info, data)
    write_bytes(Path(path), buffer.getvalue())
    return Path(path)


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGBA").save(file, "PNG")
    return file.getvalue()


# ---- reading ----


def read_openraster(path: Path | str) -> LayerStack:
    """The layers of a file. Groups become their layers or, where they have an opacity, one layer.

    LayersError says what is wrong: a file that is none, is damaged or too large, or mixes layers in a way that is not read.
    """
    path = Path(path)
    try:
        with opened(path) as stream, zipfile.ZipFile(stream) as file:
            if len(file.infolist()) > MAX_MEMBERS:
                raise LayersError(f"{path} has more than {MAX_MEMBERS} members, which no picture's layers are.")
            if _member(file, "mimetype", 100, path).strip() != MIMETYPE:
                raise LayersError(f"{path} is no OpenRaster file; its mimetype says something else.")
            root = _parsed(_member(file, "stack.xml", MAX_XML, path), path)
            size = _whole(root, "w", path), _whole(root, "h", path)
            if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
                raise LayersError(f"{path} has a canvas of {size[0]} x {size[1]}; at most {MAX_PIXELS:,} pixels are read.")
            stack = root.find("stack")
            if root.tag != "image" or stack is None:
                raise LayersError(f"{path} has no stack of layers.")
            reader = _Reader(file, path, *size)
            return LayerStack(*size, tuple(reader.layers(stack, 0)))
    except (LayersError, CheckpointError):
        raise
    except (*DAMAGED, OSError, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise LayersError(f"{path} cannot be read as OpenRaster ({error}); give an .ora file.") from None


@dataclass
class _Reader:
    """Reads the layers of one file. pixels, count: what is left of what may be read."""

    file: zipfile.ZipFile
    path: Path
    width: int
    height: int
    pixels: int = 4 * MAX_PIXELS
    count: int = MAX_LAYERS

    def layers(self, stack: ElementTree.Element, depth: int) -> Iterator[LayerImage]:
        """Those of a stack, the lowest first."""
        if depth > MAX_DEPTH:
            raise LayersError(f"{self.path} has groups within groups beyond {MAX_DEPTH} levels.")
        for element in reversed(list(stack)):
            if element.tag not in ("layer", "stack"):
                continue  # text and filters, which programs may leave out
            if (mode := element.get("composite-op", "")) not in PLAIN:
                raise LayersError(f"{self.path} mixes a layer by {mode!r:.40}; only plain layers (svg:src-over) are read.")
            opacity = _number(element, "opacity", self.path)
            visible = element.get("visibility", "visible") == "visible"
            if element.tag == "layer":
                yield self._layer(element, opacity, visible)
                continue
            inside = tuple(self.layers(element, depth + 1))
            if opacity == 1 and visible:  # `over` is associative, so that the group is its layers
                yield from inside
            else:
                self._take(self.width * self.height)
                whole = LayerStack(self.width, self.height, inside).flatten()
                yield LayerImage(_name(element), whole, opacity=opacity, visible=visible)

    def _take(self, pixels: int) -> None:
        """Count one more layer of so many pixels; LayersError where that is too much."""
        self.count, self.pixels = self.count - 1, self.pixels - pixels
        if self.count < 0:
            raise LayersError(f"{self.path} has more than {MAX_LAYERS} layers.")
        if self.pixels < 0:
            raise LayersError(f"{self.path} has layers of more than {4 * MAX_PIXELS:,} pixels together.")

    def _layer(self, element: ElementTree.Element, opacity: float, visible: bool) -> LayerImage:
        source = element.get("src", "")
        data = _member(self.file, source, MAX_MEMBER, self.path)
        try:
            with open_header(io.BytesIO(data), ["PNG"]) as picture:
                self._take(picture.width * picture.height)
                shown = picture.convert("RGBA")
        except (PictureError, OSError, ValueError, SyntaxError) as error:
            if isinstance(error, LayersError):
                raise
            raise LayersError(f"{self.path}: {source!r:.80} is not a usable PNG ({error}).") from None
        x, y = (_whole(element, name, self.path, 0) for name in ("x", "y"))
        return LayerImage(_name(element), shown, x, y, opacity, visible)


def _member(file: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    return read_member(file, name, limit, path, "OpenRaster file", LayersError)


def _parsed(xml: bytes, path: Path) -> ElementTree.Element:
    if b"\0" in xml:  # UTF-16 or UTF-32, in which the next line would not see what it looks for
        raise LayersError(f"{path}: stack.xml is not UTF-8 text.")
    if b"<!" in xml.replace(b"<!--", b""):
        raise LayersError(f"{path}: stack.xml has a DOCTYPE or entities, which no list of layers needs.")
    try:
        return ElementTree.fromstring(xml)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise LayersError(f"{path}: stack.xml is not XML ({error}).") from None


def _name(element: ElementTree.Element) -> str:
    return element.get("name", "")[:1000]


def _whole(element: ElementTree.Element, name: str, path: Path, usual: int | None = None) -> int:
    text = element.get(name)
    if text is None and usual is not None:
        return usual
    try:
        value = int(str(text)[:12])
    except ValueError:
        value = 1 << 31
    if abs(value) >= 1 << 24:
        raise LayersError(f"{path}: {name} is {text!r:.40}; a whole number of pixels is needed.")
    return value


def _number(element: ElementTree.Element, name: str, path: Path) -> float:
    text = element.get(name, "1")
    try:
        value = float(text[:40])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise LayersError(f"{path}: {name} is {text!r:.40}; a number from 0 to 1 is needed.")
    return value
