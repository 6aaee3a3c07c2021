"""Saved steps are whole or absent, and damage is noticed."""

from __future__ import annotations

import os

import pytest
import torch

from distill.checkpoint import Checkpoint, clean, load, load_latest, save
from gen.checkpoints import CheckpointError


def a_checkpoint(step: int) -> Checkpoint:
    return Checkpoint(step, {"net": {"w": torch.full((3,), float(step))}}, {"config": {"a": 1}})


def test_round_trip_and_pruning(tmp_path):
    for step in (1, 2, 3, 12):
        save(tmp_path, a_checkpoint(step), keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000003", "step-00000012"]
    assert (tmp_path / "latest").read_text() == "step-00000012\n"
    newest = load_latest(tmp_path)
    assert newest.step == 12 and newest.state["config"] == {"a": 1}
    assert torch.equal(newest.tensors["net"]["w"], torch.full((3,), 12.0))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, damage):
    save(tmp_path, a_checkpoint(1), keep=3)
    folder = save(tmp_path, a_checkpoint(2), keep=3)
    target = folder / ("manifest.json" if damage == "manifest" else "net.safetensors")
    data = bytearray(target.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
    target.write_bytes(bytes(data) if damage == "flip" else bytes(data[: len(data) // 2]))
    if damage == "remove":
        target.unlink()
    with pytest.raises(CheckpointError):
        load(folder)
    with pytest.warns(UserWarning, match="Skipping"):
        assert load_latest(tmp_path).step == 1


def test_a_name_that_leaves_the_folder_is_refused(tmp_path):
    folder = save(tmp_path, a_checkpoint(1), keep=1)
    (tmp_path / "outside.safetensors").write_bytes((folder / "net.safetensors").read_bytes())
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("net.safetensors", "../outside.safetensors"))
    with pytest.raises(CheckpointError, match="not in the folder"):
        load(folder)


@pytest.mark.parametrize("call", range(8))
@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_a_failure_at_any_system_call_leaves_the_old_step(tmp_path, monkeypatch, call, name):
    save(tmp_path, a_checkpoint(1), keep=1)
    real, count = getattr(os, name), 0

    def failing(*arguments, **options):
        nonlocal count
        count += 1
        if count == call + 1:
            raise OSError(28, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(os, name, failing)
    try:
        save(tmp_path, a_checkpoint(2), keep=1)
        assert count <= call  # it was never reached
    except OSError:
        pass
    monkeypatch.undo()
    assert load_latest(tmp_path).step in (1, 2)
    clean(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_no_run_is_no_checkpoint(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None
