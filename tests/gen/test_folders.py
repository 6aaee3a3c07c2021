"""A folder that is replaced is at every moment the old one or the new one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from gen.io import folders
from gen.io.folders import put_in_place, recover, written_folder
from tests.distill.processes import forked


def write(folder: Path, text: str) -> None:
    with written_folder(folder) as new:
        for name in ("a", "b"):
            (new / name).write_text(text)


def read(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in ("a", "b")}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    for text in ("one", "two", "three"):
        write(tmp_path / "deep" / "model", text)
        assert read(tmp_path / "deep" / "model") == {text}
        assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    write(tmp_path / "model", "one")
    with pytest.raises(OSError, match="No space"), written_folder(tmp_path / "model") as new:
        assert new.name == "model"
        (new / "a").write_text("two")
        raise OSError(28, "No space left on device")
    assert read(tmp_path / "model") == {"one"} and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path, monkeypatch):
    """Where names can't be exchanged: the old folder is beside its name, under a name of its own, and comes back."""
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    write(tmp_path / "mo[d]el*", "one")
    (tmp_path / "new").mkdir()
    real = os.rename

    def rename(a, b):
        if Path(b).name == "mo[d]el*":
            raise KeyboardInterrupt
        real(a, b)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", rename)
        put_in_place(tmp_path / "new", tmp_path / "mo[d]el*")
    assert not (tmp_path / "mo[d]el*").exists()
    assert recover(tmp_path / "mo[d]el*") and read(tmp_path / "mo[d]el*") == {"one"}
    assert not recover(tmp_path / "mo[d]el*") and not recover(tmp_path / "absent")
    os.rename(tmp_path / "mo[d]el*", tmp_path / ".mo[d]el*.1-a.old.tmp")  # also where it is to be written again, in vain
    with pytest.raises(OSError, match="No space"), written_folder(tmp_path / "mo[d]el*"):
        raise OSError(28, "No space left on device")
    assert read(tmp_path / "mo[d]el*") == {"one"}


def test_whoever_looks_sees_one_of_both_and_kills_leave_it_whole(tmp_path):
    """A process replaces a folder without end and is killed, ten times; a reader finds it there, of one piece, each time."""
    if not folders.sys.platform.startswith("linux"):
        pytest.skip("names are exchanged in one step on Linux")
    write(tmp_path / "model", "0")

    def forever() -> None:
        for number in range(100_000):
            write(tmp_path / "model", str(number))

    for _ in range(10):
        process = forked(forever)
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            assert (tmp_path / "model").is_dir()
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert len(read(tmp_path / "model")) == 1
