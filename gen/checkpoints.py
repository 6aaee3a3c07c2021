"""Reading and writing weight files, safely.

Only safetensors are read. A file is checked before any module sees it: readable, finite, every name and shape expected.
Writing is atomic: a temporary file beside the target, synced, then renamed, so a crash leaves the old file whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")


class CheckpointError(ValueError):
    """A weight or config file that cannot be used; the message names the file and says why."""

    def __init__(self, path: os.PathLike | str, reason: str):
        super().__init__(f"{path}: {reason}")


def _regular_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(path, "is not a regular file; give the path of a file.")


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
    _regular_file(path)
    if path.stat().st_size > 1_000_000:
        raise CheckpointError(path, "is larger than 1 MB, which no config is.")
    try:
        value = json.loads(path.read_text("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except (ValueError, RecursionError, OSError) as error:
        raise CheckpointError(path, f"is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(path, f"holds a JSON {type(value).__name__}, not an object.")
    return value


def read_weights(path: Path | str, allow_nonfinite: bool = False) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    path = Path(path)
    _regular_file(path)
    if path.suffix in PICKLES:
        raise CheckpointError(path, "is a pickle file, which can run code when opened; convert it to safetensors first.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(path, f"is not a usable safetensors file ({error}); download or write it again.") from None
    for name, tensor in tensors.items():
        if not allow_nonfinite and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(path, f"tensor {name!r} holds NaN or infinite values; the file is damaged.")
    return tensors


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def load_weights(module: nn.Module, path: Path | str) -> None:
    """Fill a module from a file: every parameter and buffer present, nothing left over, every shape equal."""
    tensors, own = read_weights(path), module.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the model needs {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    problems = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has unknown {_listed(unknown)}"] * bool(unknown)
    problems += [_listed(shapes)] * bool(shapes)
    if problems:
        raise CheckpointError(path, f"does not fit {type(module).__name__}: {'; '.join(problems)}.")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Replace a file atomically."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path | str, value: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_weights(
    path: Path | str, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically; floating tensors in `dtype` if given."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    ready = {
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for name, value in tensors.items()
    }
    try:
        save_file(ready, temporary, {"format": "pt", **(metadata or {})})
        temporary.chmod(0o666 & ~_umask())  # safetensors writes for the owner only
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
