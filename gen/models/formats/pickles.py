"""Pickle checkpoints to safetensors: the one place that opens a pickle, on an explicit command.

`torch.load(weights_only=True)` builds tensors and plain containers and refuses everything else. What it does not refuse is a
small file that unfolds into a large one, so sizes are held against the size of the file, before and after.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.io.errors import opened
from gen.io.weights import CheckpointError, listed, regular_file, write_weights

NESTINGS = ("ema", "state_dict", "model")  # where training code puts the weights; the first that is there is taken
IP_ADAPTER = ("image_proj", "ip_adapter")  # the entries of an IP-Adapter's file, both of them weights
BUDGET = 1.5  # bytes of tensors, or of unpacked entries, per byte of file
SLACK = 1 << 20


def convert_pickle(source: Path | str, target: Path | str, key: str | None = None) -> list[str]:
    """Write the tensors of a .pt or .pth file as safetensors, under the names they have; returns the path of keys taken.

    key: which of the file's entries holds the weights; None: the file itself, or the first of `NESTINGS` that is in it.
    Nothing is overwritten. CheckpointError for a file that is not a pickle of tensors alone, or that unfolds into more bytes
    than its size allows.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: pickles are converted to safetensors; give a name that ends in .safetensors.")
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists, and nothing is overwritten; give another name.")
    limit = int(BUDGET * _check(source)) + SLACK
    tensors, keys = _weights(source, _load(source), key)
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if size > limit:
        raise CheckpointError(
            source, f"unfolds into {size} bytes of tensors, more than a file of its size holds; it is hostile."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_weights(target, _apart(tensors))
    return keys


def _check(source: Path) -> int:
    """The size of a file that may be opened."""
    regular_file(source)
    size = source.stat().st_size
    with opened(source) as file:
        head = file.read(2)
    if head == b"PK":
        try:
            with zipfile.ZipFile(source) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(source, f"is damaged ({error}); download it again.") from None
        packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
        if packed or sum(entry.file_size for entry in entries) > BUDGET * size + SLACK:
            raise CheckpointError(source, "is compressed, which torch.save never does: it may unfold without end.")
    elif head[:1] != b"\x80":
        raise CheckpointError(source, "is not a pickle of torch; leave out --from-pickle if it is safetensors.")
    return size


def _load(source: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice is for its own users
            return torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        raise CheckpointError(source, "does not fit into memory.") from None
    except Exception as error:  # whatever a hostile pickle provokes
        names = re.findall(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if not names and _bare(source):
            raise CheckpointError(
                source, "is a bare pickle, not a file of torch.save; save its tensors with torch.save where it was made."
            ) from None
        advice = "weights_only" in str(error)  # to open it all the same
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"it asks for {names[0]}" if names else "it holds more than tensors" if advice else first
        raise CheckpointError(
            source, f"cannot be opened without running its code ({what}); save its tensors alone where it was made."
        ) from None


def _bare(source: Path) -> bool:
    """Neither an archive nor the older kind of file, which begins with torch's own number, pickled."""
    with open(source, "rb") as file:
        head = file.read(32)
    return head[:2] != b"PK" and b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" not in head


def _weights(source: Path, value: Any, key: str | None) -> tuple[dict[str, Tensor], list[str]]:
    keys: list[str] = []
    if isinstance(value, Mapping) and value.keys() == {*IP_ADAPTER} and all(map(_is_weights, value.values())):
        value = {f"{part}.{name}": tensor for part in IP_ADAPTER for name, tensor in value[part].items()}
    while isinstance(value, Mapping) and len(keys) < 3 and not _is_weights(value):
        inner = key if key is not None and not keys else next((name for name in NESTINGS if name in value), None)
        if inner not in value:
            break
        value, keys = value[inner], [*keys, str(inner)]
    if key is not None and keys[:1] != [key]:
        known = listed([str(name) for name in value]) if isinstance(value, Mapping) else "none"
        raise CheckpointError(source, f"has no entry {key!r} of weights; its entries are {known}.")
    if not isinstance(value, Mapping) or not _is_weights(value):
        odd = (
            [str(name) for name, entry in value.items() if not isinstance(entry, Tensor)] if isinstance(value, Mapping) else []
        )
        what = f"entries that are no tensors: {listed(odd)}" if odd else f"a {type(value).__name__}"
        raise CheckpointError(source, f"holds {what}; name the entry that holds the weights with --key.")
    for name, tensor in value.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(source, f"holds {name!r} as a tensor that safetensors cannot hold.")
    return {name: tensor.detach() for name, tensor in value.items()}, keys


def _is_weights(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items())


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No two of them in one piece of memory, which safetensors does not write."""
    storages, apart = set[int](), dict[str, Tensor]()
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in storages
        apart[name] = tensor.clone() if shared else tensor
        storages.add(tensor.untyped_storage().data_ptr())
    return apart
