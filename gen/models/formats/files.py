"""The files of a checkpoint: one safetensors file, or several behind an index, with the config beside them.

An index is not trusted: every file that it names lies in its own folder, and every tensor lies in exactly the file that the
index says, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.io.weights import PICKLES, CheckpointError, TensorFile, listed, read_json

SHARD = re.compile(r"[\w.-]+\.safetensors")
INDEX = ".index.json"
NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class CheckpointFiles:
    """path: what was given. config: config.json beside the files, if there is one, and where it lies."""

    path: Path
    files: tuple[TensorFile, ...]
    config: Mapping[str, Any] | None
    config_path: Path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for file in self.files for name, shape in file.shapes.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        return {name: dtype for file in self.files for name, dtype in file.dtypes.items()}

    def tensors(self, allow_nonfinite: bool = False) -> Iterator[tuple[str, Tensor]]:
        for file in self.files:
            yield from file.tensors(allow_nonfinite=allow_nonfinite, digest=True)

    def tensor(self, name: str) -> Tensor:
        """A copy of one tensor."""
        file = next(file for file in self.files if name in file.shapes)
        return next(tensor.clone() for _, tensor in file.tensors([name]))


def open_checkpoint(path: Path | str) -> CheckpointFiles:
    """Open a safetensors file, an index, or a folder that holds one of them; every header is checked, no tensor is read."""
    path = Path(path)
    file = _inside(path) if path.is_dir() else path
    config = file.parent / "config.json"
    files = _shards(file) if file.name.endswith(INDEX) else (TensorFile(file),)
    return CheckpointFiles(path, files, read_json(config) if config.exists() else None, config)


def _inside(folder: Path) -> Path:
    files = [folder / name for name in (*NAMES, *(name + INDEX for name in NAMES)) if (folder / name).exists()]
    if len(files) > 1:
        raise CheckpointError(folder, f"holds both {files[0].name} and {files[1].name}; give the path of one of them.")
    if files:
        return files[0]
    if (folder / "model_index.json").exists():
        raise CheckpointError(folder, "is a diffusers pipeline; give its folder of the network, transformer/.")
    if pickles := sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES):
        raise CheckpointError(
            folder, f"holds pickle files only, such as {pickles[0]}; convert that one first (`fewstep convert --from-pickle`)."
        )
    raise CheckpointError(folder, f"holds none of {', '.join(NAMES)} (or their {INDEX}); give the path of the file.")


def _homes(folder: Path) -> list[Path]:
    """Where the files of a folder may really lie: in it, or among the blobs of the same repository in the hub's cache."""
    homes = [folder.resolve()]
    for parent in homes[0].parents:
        if parent.name == "snapshots" and parent.parent.name.startswith("models--"):
            homes.append(parent.parent / "blobs")
    return homes


def _shards(index: Path) -> tuple[TensorFile, ...]:
    value = read_json(index)
    table = value.get("weight_map")
    if unknown := value.keys() - {"metadata", "weight_map"}:
        raise CheckpointError(index, f"has the unknown key {min(unknown)!r}; an index holds metadata and weight_map.")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(index, "has no weight_map of tensor names to file names.")
    for name, shard in table.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise CheckpointError(index, f"puts {name!r} into {shard!r}, which is no name of a safetensors file in its folder.")
    files, homes = [], _homes(index.parent)
    for shard in sorted(set(table.values())):
        place = index.parent / shard
        if place.is_symlink() and place.resolve().parent not in homes:
            raise CheckpointError(place, "is a link out of its folder; put the file itself there.")
        file = TensorFile(place)
        names = {name for name, where in table.items() if where == shard}
        if missing := sorted(names - file.shapes.keys()):
            raise CheckpointError(place, f"lacks {listed(missing)}, which {index.name} puts there.")
        if extra := sorted(file.shapes.keys() - names):
            raise CheckpointError(place, f"holds {listed(extra)}, which {index.name} does not put there.")
        files.append(file)
    return tuple(files)
