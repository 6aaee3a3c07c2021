"""Interpolation of whole models: (1 - share) first + share second, as SwiftBrush v2 (arXiv 2408.14176) joins two students."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from customization.algebra.sum import Track
from gen.adapters import AdapterError
from gen.io.folders import written_folder
from gen.io.weights import CheckpointError, TensorFile, listed, read_json, read_metadata, write_weights


def lerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """(1 - share) first + share second, computed in float32 or wider and rounded once; whole numbers must agree."""
    if share in (0.0, 1.0) or torch.equal(first, second):
        return second if share == 1.0 else first
    if not first.is_floating_point():
        raise ValueError("holds whole numbers that differ")
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    return torch.lerp(first.to(wide), second.to(wide), share).to(first.dtype)


def interpolate_weights(
    first: Path | str, second: Path | str, target: Path | str, share: float = 0.5, track: Track = iter
) -> Path:
    """Write the model between two: safetensors files, or model folders with the same files. Returns the target.

    share: of the second, 0 to 1 (beyond, it extrapolates). What is not weights (configs, cards) is the first's. The target is
    written beside its name and renamed; it must not exist. CheckpointError where the two have other tensors, shapes or types.
    """
    first, second, target = Path(first), Path(second), Path(target)
    if isinstance(share, bool) or not isinstance(share, int | float) or not -10 <= share <= 10:
        raise AdapterError(f"The share of the second model is {share!r}; give a number, 0.5 for the middle.")
    if os.path.lexists(target):
        raise AdapterError(f"{target} exists, and nothing is overwritten; give another name.")
    if first.is_dir() != second.is_dir():
        raise AdapterError(f"One of {first} and {second} is a folder and the other is not; give two models of one kind.")
    if not first.is_dir():
        return _file(first, second, target, float(share), track)
    files = weight_files(first)
    if set(files) != set(weight_files(second)):
        raise CheckpointError(second, f"holds other weight files than {first}; give two models of one kind.")
    if not files:
        raise CheckpointError(first, "holds no safetensors files; give a model's folder.")
    _same_configs(first, second)
    with written_folder(target) as beside:
        ignored = lambda _, names: [name for name in names if name.endswith(".safetensors")]  # noqa: E731
        shutil.copytree(first, beside, ignore=ignored, dirs_exist_ok=True)
        for name in files:
            _file(first / name, second / name, beside / name, float(share), track)
    return target


def _same_configs(first: Path, second: Path) -> None:
    """CheckpointError where two folders' networks have other configs, or their models another path or prediction."""
    for config in sorted(first.rglob("config.json")):
        name = config.relative_to(first)
        if not (second / name).exists():
            raise CheckpointError(second, f"has no {name}; give two models of one kind.")
        one, two = read_json(config, infinite=True), read_json(second / name, infinite=True)
        whole = config.parent != first or not {"path", "prediction"} & one.keys()
        for key in sorted(one.keys() | two.keys()) if whole else ("path", "prediction", "clock"):
            if not key.startswith("_") and one.get(key) != two.get(key):
                raise CheckpointError(
                    second / name, f"has {key} {two.get(key)!r:.60} where {first} has {one.get(key)!r:.60}; only models of one "
                    "kind can be averaged."
                )  # fmt: skip


def weight_files(folder: Path) -> list[str]:
    """The safetensors files of a folder, by their paths in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def _file(first: Path, second: Path, target: Path, share: float, track: Track) -> Path:
    one, two = TensorFile(first), TensorFile(second)
    if different := sorted(one.shapes.keys() ^ two.shapes.keys()):
        raise CheckpointError(second, f"is another network than {first}: only one of them has {listed(different)}.")
    if unlike := [name for name in one.shapes if (one.shapes[name], one.dtypes[name]) != (two.shapes[name], two.dtypes[name])]:
        name = unlike[0]
        raise CheckpointError(
            second,
            f"does not fit {first}: {name} is {two.dtypes[name]} {two.shapes[name]} there and {one.dtypes[name]} "
            f"{one.shapes[name]} here.",
        )
    made: dict[str, Tensor] = {}
    for name in track(list(one.shapes)):
        (_, a), (_, b) = next(one.tensors([name])), next(two.tensors([name]))
        try:
            made[name] = lerp(a, b, share).clone()
        except ValueError as error:
            raise CheckpointError(second, f"{name} {error} from those in {first}; they cannot be averaged.") from None
    metadata: Mapping[str, str] = {name: text for name, text in read_metadata(first).items() if name != "format"}
    write_weights(target, made, metadata=metadata)
    return target
