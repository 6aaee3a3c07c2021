"""GGUF files, read without trust: every count and offset of the header is checked against the file before memory is allocated.

The format is ggml's (docs/gguf.md there): a magic, a version, counts, key-value pairs, tensor records, then aligned data.
Blocks are dequantised by diffusers' functions, which need the package `gguf`.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from gen.io.errors import CheckpointError, opened, regular_file
from gen.io.weights import finite
from gen.nn.quantized import Codec, QuantizedWeight

MAGIC = b"GGUF"
MOST_KEYS, MOST_TENSORS, LONGEST, DEEPEST = 4096, 1 << 16, 1 << 20, 4

# type number -> (name, numbers in a block, bytes of a block, where its half-precision scales are)
TYPES: dict[int, tuple[str, int, int, slice]] = {
    2: ("Q4_0", 32, 18, slice(0, 2)),
    3: ("Q4_1", 32, 20, slice(0, 4)),
    6: ("Q5_0", 32, 22, slice(0, 2)),
    7: ("Q5_1", 32, 24, slice(0, 4)),
    8: ("Q8_0", 32, 34, slice(0, 2)),
    10: ("Q2_K", 256, 84, slice(80, 84)),
    11: ("Q3_K", 256, 110, slice(108, 110)),
    12: ("Q4_K", 256, 144, slice(0, 4)),
    13: ("Q5_K", 256, 176, slice(0, 4)),
    14: ("Q6_K", 256, 210, slice(208, 210)),
    20: ("IQ4_NL", 32, 18, slice(0, 2)),
    23: ("IQ4_XS", 256, 136, slice(0, 2)),
}
PLAIN = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 30: ("BF16", torch.bfloat16)}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class _Header:
    """A cursor over the header's bytes that never goes beyond the file."""

    def __init__(self, path: Path, file: Any, size: int):
        self.path, self.file, self.size = path, file, size

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(self.path, f"is not a usable GGUF file ({what}); download it again.")

    def take(self, count: int) -> bytes:
        if count < 0 or self.file.tell() + count > self.size:
            raise self.damaged("its header ends too early")
        return self.file.read(count)

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > LONGEST:
            raise self.damaged(f"a text of {length} bytes in its header")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.damaged("a name that is no text") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == 8:
            return self.text()
        if kind != 9 or depth == DEEPEST:
            raise self.damaged(f"a value of the unknown kind {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > LONGEST:
            raise self.damaged(f"a list of {count} values in its header")
        return [self.value(inner, depth + 1) for _ in range(count)]


class GGUFFile:
    """A GGUF file: shapes (as torch has them), dtypes by name, the header's values, and `tensors`."""

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        regular_file(path)
        size = path.stat().st_size
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._places: dict[str, tuple[int, int, int]] = {}  # offset, bytes, type
        with opened(path) as file:
            header = _Header(path, file, size)
            if header.take(min(4, size)) != MAGIC:
                raise CheckpointError(path, "is not a GGUF file: it does not begin with GGUF.")
            if (version := header.number("I")) not in (2, 3):
                raise CheckpointError(path, f"is GGUF of version {version}; versions 2 and 3 are read.")
            count, keys = header.number("Q"), header.number("Q")
            if count > MOST_TENSORS or keys > MOST_KEYS:
                raise header.damaged(f"it claims {count} tensors and {keys} values")
            self.metadata: dict[str, Any] = {}
            for _ in range(keys):
                name = header.text()
                self.metadata[name] = header.value(header.number("I"))
            records = [self._record(header) for _ in range(count)]
            align = self.metadata.get("general.alignment", 32)
            if not isinstance(align, int) or isinstance(align, bool) or align < 1 or align & (align - 1) or align > 1 << 20:
                raise header.damaged(f"an alignment of {align!r}")
            begin = -(-file.tell() // align) * align
        self._place(records, begin, size)
        self.codes = {name: dtype for name, dtype in self.dtypes.items() if dtype not in ("F32", "F16", "BF16")}

    def _record(self, header: _Header) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = header.text(), header.number("I")
        if name in self.shapes:
            raise header.damaged(f"the name {name!r} appears twice")
        if axes > 6:
            raise header.damaged(f"{name!r} has {axes} axes")
        shape = tuple(header.number("Q") for _ in range(axes))[::-1]
        kind, offset = header.number("I"), header.number("Q")
        if kind not in TYPES and kind not in PLAIN:
            known = ", ".join([row[0] for row in PLAIN.values()] + [row[0] for row in TYPES.values()])
            raise CheckpointError(header.path, f"has {name!r} in the unknown type {kind}; known are {known}.")
        original = self.metadata.get(f"comfy.gguf.orig_shape.{name}")
        if isinstance(original, list) and kind in PLAIN and all(isinstance(side, int) for side in original):
            if math.prod(original) != math.prod(shape):
                raise header.damaged(f"{name!r} is {shape} and its original shape {tuple(original)}")
            shape = tuple(original)
        self.shapes[name] = shape
        self.dtypes[name] = PLAIN[kind][0] if kind in PLAIN else TYPES[kind][0]
        return name, shape, kind, offset

    def _place(self, records: list[tuple[str, tuple[int, ...], int, int]], begin: int, size: int) -> None:
        taken = 0
        for name, shape, kind, offset in sorted(records, key=lambda record: record[3]):
            numbers = math.prod(shape)
            if kind in PLAIN:
                length = numbers * PLAIN[kind][1].itemsize
            else:
                _, block, width, _ = TYPES[kind]
                if not shape or shape[-1] % block:
                    raise CheckpointError(self.path, f"has {name!r} as {shape}, whose rows are no multiple of {block}.")
                length = numbers // block * width
            if offset < taken or begin + offset + length > size:
                raise CheckpointError(
                    self.path, f"has {name!r} where other data or the end of the file is; the download is incomplete."
                )
            taken = offset + length
            self._places[name] = begin + offset, length, kind

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor or `QuantizedWeight`) in the order of the file; each is read once, into memory of its own."""
        with opened(self.path) as file:
            for name, (offset, length, kind) in sorted(self._places.items(), key=lambda item: item[1][0]):
                raw = torch.empty(length, dtype=torch.uint8)
                file.seek(offset)
                if length and file.readinto(raw.numpy().data) != length:
                    raise CheckpointError(self.path, f"ends inside of {name!r}; the download is incomplete.")
                shape = self.shapes[name]
                if kind in PLAIN:
                    value = raw.view(PLAIN[kind][1]).view(shape)
                    if not finite(value):
                        raise CheckpointError(self.path, f"tensor {name!r} holds NaN or infinite values; it is damaged.")
                    yield name, value
                    continue
                _, block, width, scales = TYPES[kind]
                if not finite(raw.view(-1, width)[:, scales].contiguous().view(torch.float16)):
                    raise CheckpointError(self.path, f"tensor {name!r} holds NaN or infinite scales; it is damaged.")
                columns = shape[-1]
                parts = {"data": raw.view(-1, columns // block * width)}
                yield name, QuantizedWeight(codec(kind), parts, columns, torch.float16)


@functools.cache
def codec(kind: int) -> Codec:
    """How blocks of a type become numbers."""
    name, block, width, _ = TYPES[kind]

    def dense(parts: Mapping[str, Tensor], columns: int) -> Tensor:
        from diffusers.quantizers.gguf.utils import dequantize_functions

        data, functions = parts["data"], cast("dict[int, Any]", dequantize_functions)
        values = functions[kind](data.reshape(-1, width), block, width, dtype=torch.float32)
        return values.reshape(len(data), columns)

    return Codec(f"gguf {name}", dense)


def check_installed(path: Path) -> None:
    """CheckpointError where the package that knows the blocks is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(path, "is a GGUF file; install the package that reads it: pip install fewstep[gguf].")
