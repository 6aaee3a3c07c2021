"""Layers as a Photoshop document (PSD), for programs that read no OpenRaster. Only written here.

Source: Adobe Photoshop File Formats Specification, "Photoshop File Format": 8 bits a channel, RGB with alpha, pixels as
they are. What all layers look like together stands at the end, upon white, as programs show it that read no layers.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image

from gen.io.images import flat
from gen.io.openraster import LayerImage, LayersError, LayerStack
from gen.io.weights import write_bytes

LONGEST = 30_000  # pixels of a side
CHANNELS = ((0, 0), (1, 1), (2, 2), (-1, 3))  # the document's number, and that in RGBA
RAW, RGB, HIDDEN = struct.pack(">H", 0), 3, 2


def write_psd(path: Path | str, stack: LayerStack) -> Path:
    """Write a document in one piece. LayersError for a canvas that is larger than the format has."""
    if max(stack.width, stack.height) > LONGEST:
        raise LayersError(f"{path}: a PSD has at most {LONGEST:,} pixels a side, and this has {stack.width} x {stack.height}.")
    layers = [layer for layer in stack.layers if layer.picture.width and layer.picture.height]
    records, pixels = zip(*map(_layer, layers), strict=True) if layers else ((), ())
    info = struct.pack(">h", len(layers)) + b"".join(records) + b"".join(pixels)
    info += bytes(-len(info) % 4)
    section = struct.pack(">I", len(info)) + info + struct.pack(">I", 0)  # without a mask for all layers
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, stack.height, stack.width, 8, RGB)
    whole = np.asarray(flat(stack.flatten())).transpose(2, 0, 1)
    parts = [header, struct.pack(">II", 0, 0), struct.pack(">I", len(section)), section, RAW, whole.tobytes()]
    write_bytes(Path(path), b"".join(parts))
    return Path(path)


def _layer(layer: LayerImage) -> tuple[bytes, bytes]:
    """(record, pixels) of a layer."""
    picture: Image.Image = layer.picture.convert("RGBA")
    planes = np.asarray(picture).transpose(2, 0, 1)
    data = [RAW + planes[at].tobytes() for _, at in CHANNELS]
    rectangle = struct.pack(">4i", layer.y, layer.x, layer.y + picture.height, layer.x + picture.width)
    channels = b"".join(struct.pack(">hI", number, len(one)) for (number, _), one in zip(CHANNELS, data, strict=True))
    name = layer.name.encode("ascii", "replace")[:255]
    short = bytes([len(name)]) + name
    short += bytes(-len(short) % 4)
    text = layer.name[:1000].encode("utf-16-be", "replace")
    long = struct.pack(">I", len(text) // 2) + text
    long += bytes(-len(long) % 4)
    extra = struct.pack(">II", 0, 0) + short + b"8BIMluni" + struct.pack(">I", len(long)) + long
    flags = 0 if layer.visible else HIDDEN
    mixing = b"8BIMnorm" + struct.pack(">4B", round(255 * layer.opacity), 0, flags, 0)
    record = rectangle + struct.pack(">H", len(CHANNELS)) + channels + mixing + struct.pack(">I", len(extra)) + extra
    return record, b"".join(data)
