"""Saved steps are whole or absent, and damage is noticed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch

from distill.checkpointing.folder import Checkpoint, clean, folders, load, load_latest, save, step_of
from gen.io import folders as gen_folders
from gen.io import weights as checkpoint_files
from gen.io.weights import CheckpointError
from tests.distill.processes import forked
from tests.distill.toy import toy_trainer


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


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, damage):
    save(tmp_path, a_checkpoint(1), keep=3)
    folder = save(tmp_path, a_checkpoint(2), keep=3)
    target = folder / ("manifest.json" if damage == "manifest" else "net.safetensors")
    data = target.read_bytes()
    target.write_bytes(data[: len(data) // 2])
    if damage == "remove":
        target.unlink()
    with pytest.raises(CheckpointError):
        load(folder)
    with pytest.warns(UserWarning, match="Skipping"):
        assert load_latest(tmp_path).step == 1


def test_one_flipped_bit_anywhere_is_noticed(tmp_path):
    """Every byte of the small files, and of the weights."""
    save(tmp_path, a_checkpoint(1), keep=3)
    folder = save(tmp_path, a_checkpoint(2), keep=3)
    for name in ("net.safetensors", "state.json"):
        original = (folder / name).read_bytes()
        for position in range(len(original)):
            data = bytearray(original)
            data[position] ^= 1 << position % 8
            (folder / name).write_bytes(data)
            with pytest.raises(CheckpointError, match="damaged"):
                load(folder)
        (folder / name).write_bytes(original)
    assert load_latest(tmp_path).step == 2
    data = bytearray((folder / "net.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "net.safetensors").write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        assert load_latest(tmp_path).step == 1


@pytest.mark.parametrize(
    "manifest",
    ["[]", "{}", '{"files": []}', '{"files": {"state.json": 3}}', '{"files": {"state.json": {"size": 1}}}', "\x00", "[" * 9999],
)
def test_a_manifest_of_any_kind_is_an_error_of_ours(tmp_path, manifest):
    folder = save(tmp_path, a_checkpoint(1), keep=1)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load(folder)


def test_a_link_in_place_of_a_file_is_refused(tmp_path):
    folder = save(tmp_path, a_checkpoint(1), keep=1)
    (folder / "net.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "net.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="not in the folder"):
        load(folder)


def test_some_steps_are_kept_for_good(tmp_path):
    for step in range(1, 12):
        save(tmp_path, a_checkpoint(step), keep=2, keep_every=4)
    assert [step_of(folder) for folder in folders(tmp_path)] == [11, 10, 8, 4]


def test_other_names_are_not_steps(tmp_path):
    for name in ("step-", "step-x", "step-1.tmp", "other", "step--3"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000007").write_text("a file")
    assert folders(tmp_path) == []


def test_pruning_goes_on_where_a_folder_cannot_be_deleted(tmp_path, monkeypatch):
    save(tmp_path, a_checkpoint(1), keep=3)
    monkeypatch.setattr(os, "rmdir", lambda *a, **k: (_ for _ in ()).throw(PermissionError(13, "denied")))
    for step in (2, 3):
        save(tmp_path, a_checkpoint(step), keep=1)
    monkeypatch.undo()
    assert load_latest(tmp_path).step == 3


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


@pytest.mark.parametrize("room", [0, 10, 100, 250, 400])
def test_a_disk_that_fills_up_leaves_the_old_step(tmp_path, monkeypatch, room):
    """Writing fails with ENOSPC after `room` bytes of the new step."""
    save(tmp_path, a_checkpoint(1), keep=1)
    left = room
    real_save, real_write = checkpoint_files.save_file, Path.write_bytes

    def take(path: Path, size: int) -> None:
        nonlocal left
        if size > left:
            real_write(path, b"x" * left)
            left = 0
            raise OSError(28, "No space left on device")
        left -= size

    def save_file(tensors, path, metadata):
        real_save(tensors, path, metadata)
        take(path, path.stat().st_size)

    def write_bytes(path, data):
        take(path, len(data))
        return real_write(path, data)

    monkeypatch.setattr(checkpoint_files, "save_file", save_file)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, a_checkpoint(2), keep=1)
    monkeypatch.undo()
    assert load_latest(tmp_path).step == 1
    assert not list(tmp_path.glob(".*.tmp")) and not (tmp_path / "step-00000002").exists()


def test_a_real_disk_that_fills_up(tmp_path):
    """A file system of half a megabyte; steps of 64 KB until nothing more fits."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        with pytest.raises(OSError):
            for step in range(1, 20):
                save(tmp_path, Checkpoint(step, {"net": {"w": torch.full((16384,), float(step))}}, {}), keep=20)
        newest = load_latest(tmp_path)
        assert newest.step >= 3 and torch.equal(newest.tensors["net"]["w"], torch.full((16384,), float(newest.step)))
        del newest
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_killed_at_twenty_moments_leaves_a_loadable_run(tmp_path):
    """SIGKILL while a process does nothing but save, later and later after its start."""
    reached = 0

    def forever() -> None:
        for step in range(reached + 1, reached + 100_000):
            save(tmp_path, Checkpoint(step, {"net": {"w": torch.full((20_000,), float(step))}}, {"n": step}), keep=2)

    left_over = 0
    for moment in range(20):
        process = forked(forever)
        deadline = time.monotonic() + 20
        while not (tmp_path / f"step-{reached + 1:08d}").exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.0017 * moment)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        left_over += bool(list(tmp_path.glob(".*.tmp")))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing half written has a final name
            newest = load_latest(tmp_path)
        assert newest.step > reached and newest.state["n"] == newest.step
        assert torch.equal(newest.tensors["net"]["w"], torch.full((20_000,), float(newest.step)))
        reached = newest.step
    assert left_over  # it was killed while it wrote
    clean(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_killed_runs_go_on(tmp_path):
    """The trainer itself, killed in the middle of saving on every step, then resumed in the same folder."""
    toy_trainer(tmp_path)  # what torch imports when first used is then there in every fork
    reached = 0
    for moment in range(4):
        process = forked(lambda: toy_trainer(tmp_path, max_steps=100_000, checkpoint_every=1, log_every=100).train())
        deadline = time.monotonic() + 30
        while not any(step_of(f) > reached for f in folders(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(0.007 * moment)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        newest = load_latest(tmp_path)
        assert newest.step > reached
        reached = newest.step
        del newest
    trainer = toy_trainer(tmp_path, max_steps=reached + 2)
    trainer.train()
    assert trainer.step == reached + 2 and min(trainer.source.asked) == 8 * reached
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_full_disk_ends_a_run_with_the_last_step_usable(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path, checkpoint_every=4)
    real, count = checkpoint_files.save_file, 0

    def save_file(tensors, path, metadata):
        nonlocal count
        count += 1
        if count > 4:
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoint_files, "save_file", save_file)
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    monkeypatch.undo()
    assert load_latest(tmp_path).step == 4
    again = toy_trainer(tmp_path)
    again.train()
    assert again.step == 12


def test_no_run_is_no_checkpoint(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def damage(folder: Path) -> None:
    """One bit of the weights."""
    path = folder / "net.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("damaged", [1, 2])
def test_damaged_steps_neither_count_nor_push_out_good_ones(tmp_path, keep, damaged):
    for step in (10, 20, 30, 40):
        save(tmp_path, a_checkpoint(step), keep=9)
    for step in (30, 40)[-damaged:]:
        damage(tmp_path / f"step-{step:08d}")
    with pytest.warns(UserWarning, match="Skipping"):
        reached = load_latest(tmp_path).step
    for step in range(reached + 2, reached + 10, 2):
        save(tmp_path, a_checkpoint(step), keep=keep)
        mine = [step_of(folder) for folder in folders(tmp_path) if step_of(folder) <= step]
        assert mine[0] == step and len(mine) == keep
    with pytest.warns(UserWarning, match="Skipping"):
        assert load_latest(tmp_path).step == reached + 8


def test_a_resumed_run_sets_damaged_steps_aside(tmp_path, capsys):
    """Of kept steps 5 and 10 the newer is damaged: the run goes on from 5, and both that it keeps at the end are good."""
    toy_trainer(tmp_path, max_steps=10).train()
    damage(tmp_path / "step-00000010")
    with pytest.warns(UserWarning, match="Skipping"):
        toy_trainer(tmp_path, max_steps=7).train()
    assert "was moved to damaged-step-00000010" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.glob("*step-*")) == ["damaged-step-00000010", "step-00000005", "step-00000007"]
    damage(tmp_path / "step-00000007")
    with pytest.warns(UserWarning, match="Skipping"):
        toy_trainer(tmp_path, max_steps=12).train()
    assert [load(folder).step for folder in folders(tmp_path)] == [12, 10]


def test_a_run_whose_steps_are_all_damaged_does_not_begin_anew(tmp_path):
    toy_trainer(tmp_path, max_steps=10).train()
    for folder in folders(tmp_path):
        damage(folder)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="no usable checkpoint: step-00000010, step-00000005"):
        toy_trainer(tmp_path).train()
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_run_whose_steps_are_gone_does_not_begin_anew(tmp_path):
    folder = save(tmp_path, a_checkpoint(5), keep=1)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="names step-00000005 in the file `latest`"):
        toy_trainer(tmp_path).train()
    (tmp_path / "latest").unlink()
    assert load_latest(tmp_path) is None


@pytest.mark.parametrize("exchange", [True, False])
def test_writing_a_step_again_never_leaves_none(tmp_path, monkeypatch, exchange):
    """The same step after a resume from before it, stopped at each system call: there is a good one all the time."""
    if not exchange:
        monkeypatch.setattr(gen_folders, "_exchange", lambda a, b: False)
    for call in range(6):
        run = tmp_path / str(call)
        save(run, a_checkpoint(1), keep=1)
        count = 0

        def stopping(name, run=run, call=call):
            real = getattr(os, name)

            def function(*arguments, **options):
                nonlocal count
                count += 1
                if count == call + 1:
                    raise KeyboardInterrupt
                return real(*arguments, **options)

            return function

        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "rmdir"):
                patch.setattr(os, name, stopping(name))
            with contextlib.suppress(KeyboardInterrupt):
                save(run, Checkpoint(1, {"net": {"w": torch.ones(3)}}, {"again": True}), keep=1)
        clean(run)
        assert load_latest(run).step == 1
