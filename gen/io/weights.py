"""Reading and writing weight files, safely.

Only safetensors are read. A file is checked before any module sees it: readable, finite, every name and shape expected.
Writing is atomic: a temporary file beside the target, synced, then renamed, so a crash leaves the old file whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gen.io.errors import CheckpointError, opened, read_text, regular_file
from samplers.atomic import written

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
PICKLE = (
    "is a pickle file, which can run code when opened; convert it to safetensors first "
    "(`fewstep convert --from-pickle IN OUT.safetensors`)."
)


def read_json(path: Path | str, infinite: bool = False) -> dict[str, Any]:
    """A JSON object from a file of at most 1 MB; duplicate keys and non-finite numbers are refused. infinite: but infinities,
    which diffusers writes in scheduler configs, are let through."""

    def no_duplicates(pairs):
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
        return dict(pairs)

    def no_constant(name):
        if infinite and name in ("Infinity", "-Infinity"):
            return float(name)
        raise ValueError(f"{name} is not a number that a config may hold")

    path = Path(path)
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(path, f"holds a JSON {type(value).__name__}, not an object.")
    return value


def _why_unusable(path: Path, error: Exception) -> str:
    """What a file that is not safetensors looks like, from its first bytes."""
    with opened(path) as file:
        head = file.read(64)
    if not head:
        return "is empty (0 bytes); download or write it again."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it stands for; fetch that with `git lfs pull`."
    if head.lstrip().startswith(b"<"):
        return "is a web page, not weights: the download went wrong; try it again."
    if head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return PICKLE
    return f"is not a usable safetensors file ({error}); download or write it again."


class TensorFile:
    """A safetensors file: its header is checked at once, its tensors are read one by one.

    shapes, dtypes: of every tensor, by name (dtypes as the format spells them: F32, BF16, ...). The file is mapped, not
    read, and the mapping is renewed every `WINDOW` bytes, so that reading never holds more than that beside the reader's own
    memory.
    """

    WINDOW = 64 << 20

    def __init__(self, path: Path | str):
        self.path = path = Path(path)
        regular_file(path)
        if path.suffix in PICKLES:
            raise CheckpointError(path, PICKLE)
        try:
            with safe_open(path, framework="pt") as file:
                slices = {name: file.get_slice(name) for name in file.offset_keys()}
                self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                self.dtypes = {name: part.get_dtype() for name, part in slices.items()}
            self._refuse_duplicates()
        except PermissionError as error:
            raise CheckpointError(path, f"cannot be read ({error.strerror}).") from None
        except (SafetensorError, OSError, ValueError, RuntimeError, RecursionError) as error:
            raise CheckpointError(path, _why_unusable(path, error)) from None

    def _refuse_duplicates(self) -> None:
        def unique(pairs):
            names = [name for name, _ in pairs]
            if len(set(names)) != len(names):
                raise ValueError(f"the name {next(n for n in names if names.count(n) > 1)!r} appears twice")

        with open(self.path, "rb") as file:
            json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=unique)

    def tensors(
        self, names: Sequence[str] | None = None, allow_nonfinite: bool = False, digest: bool = False
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all tensors, or of those named, in the order of the file. A tensor is a view of the mapped file:
        copy it, and let go of it before the next. digest: take the file's digest (`gen.io.digests`) from what is read of it,
        all of it then."""
        from gen.io.digests import DigestReader

        reading = DigestReader(self.path) if digest and names is None else None
        left = [name for name in self.shapes if names is None or name in names]
        while left:
            read = 0
            try:
                with safe_open(self.path, framework="pt") as file:
                    while left and read < self.WINDOW:
                        tensor = file.get_tensor(left[0])
                        if not (allow_nonfinite or finite(tensor)):
                            raise CheckpointError(
                                self.path, f"tensor {left[0]!r} holds NaN or infinite values; the file is damaged."
                            )
                        read += tensor.nbytes
                        if reading is not None:
                            reading.add(tensor)
                        yield left.pop(0), tensor
                        del tensor
            except (SafetensorError, OSError, RuntimeError) as error:
                raise CheckpointError(self.path, _why_unusable(self.path, error)) from None
        if reading is not None:
            reading.done()


def finite(tensor: Tensor) -> bool:
    """Has a tensor no NaN and no infinity? One pass, and no copy where the dtype has a kernel for extremes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = torch.aminmax(tensor if tensor.itemsize > 1 else tensor.float())
    return math.isfinite(low) and math.isfinite(high)


def read_weights(path: Path | str, allow_nonfinite: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    return dict(TensorFile(path).tensors(allow_nonfinite=allow_nonfinite))


def read_metadata(path: Path | str) -> dict[str, str]:
    """The texts in a safetensors file's header."""
    path = Path(path)
    regular_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(path, _why_unusable(path, error)) from None


def listed(names: Sequence[str]) -> str:
    """The first five names, and how many more there are; names that a terminal cannot show are quoted."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name if name.isprintable() else repr(name) for name in names[:5]) + more


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Fill a module from a file: every parameter and buffer present, nothing left over, every shape equal."""
    file, state = TensorFile(path), module.state_dict()
    missing, unknown = sorted(state.keys() - file.shapes.keys()), sorted(file.shapes.keys() - state.keys())
    shapes = [
        f"{name} is {file.shapes[name]}, the model needs {tuple(state[name].shape)}"
        for name in sorted(state.keys() & file.shapes.keys())
        if state[name].shape != file.shapes[name]
    ]
    problems = [f"lacks {listed(missing)}"] * bool(missing) + [f"has unknown {listed(unknown)}"] * bool(unknown)
    problems += [listed(shapes)] * bool(shapes)
    if problems:
        raise CheckpointError(path, f"does not fit {type(module).__name__}: {'; '.join(problems)}.")
    with torch.no_grad():
        for name, tensor in file.tensors(digest=True):  # who opens a model asks for its digest too
            state[name].copy_(tensor)


_umask_read = threading.Lock()  # two threads in between each other would leave the process without its umask


def _umask() -> int:
    with _umask_read:
        value = os.umask(0)
        os.umask(value)
    return value


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace a file atomically."""
    with written(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_weights(
    path: Path | str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; floating tensors in `dtype` if given. The same values are the same bytes."""
    path = Path(path)
    ready = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in tensors.items()
    }
    with written(path) as temporary:
        with system_errors(path):
            save_file(ready, temporary, {"format": "pt", **(metadata or {})})
        _sort_texts(temporary)
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for the owner only


def _sort_texts(path: Path) -> None:
    """Put the texts in a safetensors file's header in the order of their names; the library's order is that of a hash table,
    another one each time."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > size:
            raise CheckpointError(path, f"has a header that cannot be written in {size} bytes; shorten its metadata.")
        file.seek(8)
        file.write(text.ljust(size))


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Inside, what a library says of the system in an error of its own (a full disk, in safetensors and tokenizers) is an
    OSError about the path, as it is everywhere else."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        match = re.search(r"os error (\d+)|code: (\d+), kind", str(error))
        if match is None and not isinstance(error, SafetensorError):
            raise
        number = int(match[1] or match[2]) if match else errno.EIO
        raise OSError(number, os.strerror(number) if match else str(error), str(path)) from None


def sha256(path: Path | str) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
