"""Training checkpoints: a folder per saved step, whole or absent.

    run/step-00001000/   denoiser.safetensors  ema-denoiser.safetensors  optim-denoiser.safetensors  state.json  manifest.json
    run/latest           the name of the newest folder

A step is written to a temporary folder, every file synced, then renamed into place, then `latest` is replaced. The manifest
holds each file's size and sha256; loading takes the newest folder that verifies. No pickle anywhere.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from gen.checkpoints import CheckpointError, read_json, read_weights, sha256, sync, write_bytes, write_json, write_weights

PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """A saved step: named groups of tensors, and JSON state."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def folder_of(run: Path, step: int) -> Path:
    return run / f"{PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says; -1 for another name."""
    number = folder.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() and folder.name.startswith(PREFIX) else -1


def save(run: Path, checkpoint: Checkpoint, keep: int, keep_every: int = 0) -> Path:
    """Write a checkpoint and prune all but the newest `keep` and those of steps that `keep_every` divides (0: none).

    Any crash leaves the earlier ones usable; OSError where the disk is full, and nothing has changed.
    """
    target = folder_of(run, checkpoint.step)
    temporary = run / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, tensors in checkpoint.tensors.items():
            write_weights(temporary / f"{name}.safetensors", tensors)
        write_json(temporary / "state.json", {"step": checkpoint.step, **checkpoint.state})
        files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"files": files})
        sync(temporary)
        if target.exists():  # the same step again, after a resume from before it
            shutil.rmtree(target)
        os.replace(temporary, target)
        sync(run)
    except SafetensorError as error:  # which is how it reports a full disk
        raise OSError(f"{target} cannot be written ({error}); make room, or give another output.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_bytes(run / "latest", f"{target.name}\n".encode())
    for old in folders(run)[keep:]:
        if not (keep_every and step_of(old) % keep_every == 0):
            shutil.rmtree(old, ignore_errors=True)
    return target


def folders(run: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in run.glob(f"{PREFIX}*") if step_of(p) >= 0 and p.is_dir()), key=step_of, reverse=True)


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder; CheckpointError if anything in it is missing or changed."""
    manifest = read_json(folder / "manifest.json").get("files")
    if not isinstance(manifest, dict) or "state.json" not in manifest:
        raise CheckpointError(folder / "manifest.json", "lists no files.")
    for name, expected in manifest.items():
        path = folder / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise CheckpointError(path, "is named in the manifest but is not in the folder.")
        if not isinstance(expected, dict) or not {"size", "sha256"} <= expected.keys():
            raise CheckpointError(folder / "manifest.json", f"gives no size and sha256 for {name}.")
        if path.stat().st_size != expected["size"] or sha256(path) != expected["sha256"]:
            raise CheckpointError(path, "does not match the manifest; the checkpoint is damaged.")
    state = read_json(folder / "state.json")
    if not isinstance(state.get("step"), int):
        raise CheckpointError(folder / "state.json", "holds no step.")
    names = [name for name in manifest if name.endswith(".safetensors")]
    tensors = {name.removesuffix(".safetensors"): read_weights(folder / name) for name in names}
    return Checkpoint(state["step"], tensors, state)


def load_latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, with a warning for each newer one that does not; None if there is none."""
    for folder in folders(run):
        try:
            return load(folder)
        except CheckpointError as error:
            warnings.warn(f"Skipping a checkpoint that cannot be used: {error}", stacklevel=2)
    return None


def clean(run: Path) -> None:
    """Remove what an interrupted save left behind."""
    for stray in [*run.glob(".*.tmp"), *run.glob("snapshots/.*.tmp")]:
        shutil.rmtree(stray, ignore_errors=True) if stray.is_dir() else stray.unlink(missing_ok=True)
