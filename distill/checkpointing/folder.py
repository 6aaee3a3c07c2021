"""Training checkpoints: a folder per saved step, whole or absent.

    run/step-00001000/   denoiser.safetensors  ema-denoiser.safetensors  optim-denoiser.safetensors  state.json  manifest.json
    run/latest           the name of the newest folder

A step is written to a temporary folder, every file synced, then renamed into place, then `latest` is replaced. The manifest
holds each file's size and sha256; loading takes the newest folder that verifies, and a run whose folders are all damaged is an
error, never a new run. No pickle anywhere.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.io.errors import read_text
from gen.io.folders import put_in_place, recover
from gen.io.weights import CheckpointError, read_json, read_weights, sha256, write_bytes, write_json, write_weights
from samplers.atomic import beside, sync

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
    """Write a checkpoint and prune all but the newest `keep` up to it and those of steps that `keep_every` divides (0: none).

    Folders of later steps are not of what this run has done, so they neither count nor go. Any crash leaves the earlier ones
    usable; OSError where the disk is full, and nothing has changed.
    """
    target = folder_of(run, checkpoint.step)
    temporary = beside(target)
    temporary.mkdir(parents=True)
    try:
        for name, tensors in checkpoint.tensors.items():
            write_weights(temporary / f"{name}.safetensors", tensors)
        write_json(temporary / "state.json", {"step": checkpoint.step, **checkpoint.state})
        files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in sorted(temporary.iterdir())}
        write_json(temporary / "manifest.json", {"files": files})
        sync(temporary)
        put_in_place(temporary, target)  # the same step may be there, after a resume from before it
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_bytes(run / "latest", f"{target.name}\n".encode())
    for old in [folder for folder in folders(run) if step_of(folder) <= checkpoint.step][keep:]:
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


def newest_good(run: Path) -> tuple[Path | None, Checkpoint | None, list[Path]]:
    """(the newest folder of a run that verifies, what it holds, the newer ones that do not); None and None for a run without
    any step. A warning for each damaged one; CheckpointError where all are, or where the step that `latest` names is gone."""
    found = folders(run)
    damaged: list[Path] = []
    for folder in found:
        try:
            return folder, load(folder), damaged
        except CheckpointError as error:
            damaged.append(folder)
            warnings.warn(f"Skipping a checkpoint that cannot be used: {error}", stacklevel=3)
    if found:
        some = ", ".join(folder.name for folder in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        raise CheckpointError(
            run,
            f"has no usable checkpoint: {some} {'is' if len(found) == 1 else 'are all'} damaged. Restore one from a copy, or "
            "give another output (or move these away) to begin anew.",
        )
    if (latest := _latest(run)) is not None:
        raise CheckpointError(
            run,
            f"names {latest} in the file `latest`, and holds no checkpoint. Restore that folder, or delete the file to begin "
            "anew.",
        )
    return None, None, damaged


def _latest(run: Path) -> str | None:
    """What the file `latest` says."""
    try:
        return read_text(run / "latest")[:200].strip()
    except CheckpointError:
        return None


def load_latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies, as `newest_good` finds it; None for a run without any step."""
    return newest_good(run)[1]


def set_aside(folder: Path) -> Path:
    """Rename a damaged checkpoint, so that it neither counts as one of those kept nor takes a later one's place."""
    for number in range(1, 10_000):
        aside = folder.with_name(f"damaged-{folder.name}" + (f"-{number}" if number > 1 else ""))
        if not aside.exists():
            folder.rename(aside)
            return aside
    raise OSError(f"{folder} cannot be moved aside; delete the folders damaged-{folder.name}-*.")


def clean(run: Path) -> None:
    """Remove what an interrupted save or export left behind, once an export that was moved aside is back in its place."""
    recover(run / "export")
    for stray in [*run.glob(".*.tmp"), *run.glob("snapshots/.*.tmp"), *run.glob("exports/.*.tmp")]:
        shutil.rmtree(stray, ignore_errors=True) if stray.is_dir() else stray.unlink(missing_ok=True)
