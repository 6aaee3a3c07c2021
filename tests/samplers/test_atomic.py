"""Files that are written in one piece, whatever happens meanwhile."""

import os
import stat

import pytest

from samplers import atomic
from samplers.atomic import written


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a"
    with written(path) as temporary:
        temporary.write_text("first")
        assert not path.exists() and temporary.parent == tmp_path
    with pytest.raises(OSError, match="No space"), written(path) as temporary:
        temporary.write_text("sec")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "first" and names(tmp_path) == ["a"]
    with pytest.raises(FileExistsError), written(path, overwrite=False) as temporary:
        temporary.write_text("third")
    assert path.read_text() == "first" and names(tmp_path) == ["a"]
    with written(tmp_path / "b", overwrite=False) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["a", "b"]


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    with written(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_text("new")
    with pytest.raises(FileExistsError), written(tmp_path / "a", overwrite=False) as temporary:
        temporary.write_text("other")
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


def test_the_file_is_on_disk_before_its_name_and_the_name_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def watched(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(*names):
        done.append("name")
        replace(*names)

    monkeypatch.setattr(atomic.os, "fsync", watched)
    monkeypatch.setattr(atomic.os, "replace", renamed)
    with written(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert done == ["file", "name", "folder"]


def test_every_writer_flushes_the_folder_too(tmp_path, monkeypatch):
    """Pictures, weights, JSON, tables: all through the one helper."""
    import torch
    from PIL import Image

    from gen.io.contact_sheet import write_png
    from gen.io.weights import write_json, write_weights
    from gen.pipeline.png import save_image

    seen = []
    monkeypatch.setattr(atomic, "sync", lambda path: seen.append("folder" if path.is_dir() else "file"))
    picture = Image.new("RGB", (2, 2))
    for write in (
        lambda: save_image(picture, tmp_path / "a.png"),
        lambda: write_png(picture, tmp_path / "b.png"),
        lambda: write_json(tmp_path / "c.json", {}),
        lambda: write_weights(tmp_path / "d.safetensors", {"x": torch.zeros(1)}),
    ):
        seen.clear()
        write()
        assert seen == ["file", "folder"]
