"""Every reader of a file that somebody names: pipes, devices, folders and files without end are refused at once."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from distill.checkpointing.folder import load as load_checkpoint
from distill.config import load_config
from distill.data import make_source
from distill.data.emoji.archive import read_archive
from distill.data.files import read_below
from distill.data.tar import members
from distill.eval.references import ReferencePictures
from gen.adapters import Adapter, Delta, read_adapter, write_adapter
from gen.io import weights as checkpoints
from gen.io.errors import CheckpointError, opened, read_bytes, read_text
from gen.io.images import open_picture
from gen.io.weights import TensorFile, read_json, read_metadata, read_weights, sha256, write_weights
from gen.models.components import load_component
from gen.models.folder import read_model_config
from gen.models.formats.pickles import convert_pickle
from gen.tasks.layout.file import read_layout
from samplers.search.table import read_table

READERS: dict[str, Callable[[Path], object]] = {
    "opened": lambda path: opened(path).__enter__(),
    "read_bytes": read_bytes,
    "read_text": read_text,
    "config": load_config,
    "json": read_json,
    "weights": read_weights,
    "tensors": TensorFile,
    "metadata": read_metadata,
    "sha256": sha256,
    "adapter": read_adapter,
    "pickle": lambda path: convert_pickle(path, path.parent / "out.safetensors"),
    "picture": open_picture,
    "layout": read_layout,
    "archive": read_archive,
    "emoji": lambda path: make_source({"type": "emoji", "archives": [str(path)]}, 0),
    "prompts": lambda path: make_source({"type": "prompts", "file": str(path)}, 0),
    "webdataset": lambda path: make_source({"type": "webdataset", "shards": str(path)}, 0),
    "tar": lambda path: list(members(path)),
    "below": lambda path: read_below(path.parent, path.name, 1 << 20),
    "grid table": read_table,
}


@contextmanager
def within(seconds: int):
    """TimeoutError where the block takes longer, also where it waits for a pipe."""

    def late(number, frame):
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["pipe", "zeros", "folder", "nothing"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / "it.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    with within(5), pytest.raises((ValueError, OSError)) as error:
        READERS[name](path)
    assert "\n" not in str(error.value) and not isinstance(error.value, UnicodeDecodeError)


def test_folders_with_pipes_for_configs(tmp_path):
    for place, name in (
        (tmp_path / "model", "config.json"),
        (tmp_path / "part", "config.json"),
        (tmp_path / "step", "manifest.json"),
    ):
        place.mkdir()
        os.mkfifo(place / name)
    for read, place in ((read_model_config, "model"), (load_component, "part"), (load_checkpoint, "step")):
        with within(5), pytest.raises(CheckpointError, match="not a regular file"):
            read(tmp_path / place)
    key = "ab" * 32
    kept = ReferencePictures(tmp_path / "kept")
    kept.path(key).parent.mkdir(parents=True)
    os.mkfifo(kept.path(key))
    with within(5):
        assert kept.read(key) is None


def test_reading_ends_at_the_limit(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, 100) == b"x" * 100
    with pytest.raises(CheckpointError, match="larger than 99 bytes"):
        read_bytes(path, 99)
    path.write_bytes("\ufeffä".encode())
    assert read_text(path) == "ä"


def test_a_full_disk_is_the_systems_error_whoever_reports_it(tmp_path, monkeypatch):
    """safetensors has an error of its own for it."""

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_weights(tmp_path / "a.safetensors", {"w": torch.ones(3)})
    assert error.value.errno == errno.ENOSPC and error.value.filename.endswith("a.safetensors")
    assert not list(tmp_path.iterdir())


def test_an_adapters_folder_is_whole_or_absent(tmp_path, monkeypatch):
    """peft's form is two files."""

    def full(tensors, path, metadata):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    adapter = Adapter("a", {"denoiser.blocks.0.qkv": Delta({"down": torch.ones(2, 4), "up": torch.ones(4, 2)})})
    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_adapter(adapter, tmp_path / "adapter", "peft")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_adapter(adapter, tmp_path / "adapter", "peft")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
