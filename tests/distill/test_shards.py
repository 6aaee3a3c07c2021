"""Tar shards, aspect-ratio buckets, cached latents."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections import Counter

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from distill import cache
from distill.data import make_source
from distill.data.emoji.archive import DrawingRecord, write_archive
from distill.data.errors import DataError
from distill.data.latent_files import content_hash
from distill.data.order import Order, bucket_sizes, nearest_bucket
from distill.data.report import Unusable
from distill.data.tar import members
from gen.models.components import load_component, save_component
from tests.distill.processes import forked
from tests.distill.test_sources import folder, images, png
from tests.gen.conftest import tiny_autoencoder


def tar(path, entries, format=tarfile.PAX_FORMAT, **options):
    with tarfile.open(path, "w", format=format) as file:
        for name, content in entries:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            if not isinstance(content, tarfile.TarInfo):
                info.size = len(data)
            for key, value in options.items():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def shards(pattern, seed=0, **options):
    return make_source({"type": "webdataset", "shards": str(pattern), "size": 16, **options}, seed)


# ---- the reader ----


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_python_reads(tmp_path, format):
    long = "x" * 60 + "/" + "y" * 80 + ".png"
    entries = [("a.png", b"1" * 700), ("d/b.txt", b""), (long, b"2" * 512), ("ä/ü.png", b"3")]
    path = tar(tmp_path / "a.tar", entries, format, mtime=1.5 if format == tarfile.PAX_FORMAT else 1)
    found = [(m.name, m.offset, m.size) for m in members(path) if m.problem is None]
    with tarfile.open(path) as file:
        assert found == [(m.name, m.offset_data, m.size) for m in file.getmembers()]


def test_entries_that_are_not_plain_files_are_refused(tmp_path):
    entries = [
        ("ok.png", b"x"),
        ("link", special("link.png", tarfile.SYMTYPE, "/etc/passwd")),
        ("hard", special("hard.png", tarfile.LNKTYPE, "ok.png")),
        ("pipe", special("pipe.png", tarfile.FIFOTYPE)),
        ("dev", special("dev.png", tarfile.CHRTYPE)),
        ("../up.png", b"x"),
        ("/abs.png", b"x"),
        ("a/../../up.png", b"x"),
        ("c:\\x.png", b"x"),
        ("folder", special("folder", tarfile.DIRTYPE)),
        ("last.png", b"y"),
    ]
    found = {m.name: m.problem for m in members(tar(tmp_path / "a.tar", entries))}
    assert found.pop("ok.png") is None and found.pop("last.png") is None
    assert found["link.png"] == "is a symbolic link" and found["hard.png"] == "is a hard link"
    assert found["pipe.png"] == "is a pipe" and found["dev.png"] == "is a device"
    outside = [name for name, problem in found.items() if problem == "has a name that leads out of the archive"]
    assert len(outside) == 4 and "folder" not in found


def test_a_shard_cut_short_gives_what_came_before(tmp_path):
    whole = tar(tmp_path / "a.tar", [(f"{i}.png", bytes([i]) * 1000) for i in range(4)]).read_bytes()
    for length in (3 * 1536 + 700, 3 * 1536 + 100):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        found = list(members(tmp_path / "cut.tar"))
        assert [m.name for m in found if m.problem is None] == ["0.png", "1.png", "2.png"]
        assert "cut short" in found[-1].problem


def test_what_is_no_tar_file(tmp_path):
    for content in (b"PK\x03\x04" + b"x" * 2000, b"\x1f\x8b" + b"x" * 2000, b"<html>" * 200):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(Unusable, match="not an uncompressed tar"):
            list(members(tmp_path / "a.tar"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=6), cut=st.integers(0, 8192))
def test_damaged_bytes_never_do_worse_than_refuse(tmp_path, changes, cut):
    entries = [("a" * 120 + ".png", b"1" * 700), ("b.txt", b"text"), ("c.png", b"3" * 600)]
    data = bytearray(tar(tmp_path / "a.tar", entries).read_bytes())
    for position, value in changes:
        data[position] = value
    (tmp_path / "b.tar").write_bytes(data[:cut] if cut > 512 else data)
    try:
        found = list(members(tmp_path / "b.tar"))
    except Unusable:
        return
    size = (tmp_path / "b.tar").stat().st_size
    for member in found:
        assert member.problem or (member.offset >= 0 and member.offset + member.size <= size)
        assert member.problem or not (member.name.startswith("/") or ".." in member.name.split("/"))


# ---- the source ----


def test_samples_of_shards(tmp_path):
    tar(
        tmp_path / "s-00.tar",
        [
            ("a.png", png(colour=(255, 0, 0))),
            ("a.txt", b"red"),
            ("a.cls", b"3"),
            ("b.jpg", png(format="JPEG")),
            ("b.json", json.dumps({"caption": "json text", "label": 1}).encode()),
            ("c.pyd", b"code"),
            ("c.pkl", b"code"),
            ("d.txt", b"no picture"),
            ("e.png", b"<html>"),
            ("f.png", png()),
            ("f.cls", b"many"),
            ("g.png", png()),
            ("g.png", png(colour=(0, 0, 255))),
        ],
    )
    tar(tmp_path / "s-01.tar", [("x/a.seg.png", png()), ("x/a.png", png(colour=(0, 255, 0)))])
    source = shards(tmp_path / "s-{00..01}.tar")
    found = {item.name: (item.caption, item.label) for item in source.items}
    assert found == {"s-00.tar/a": ("red", 3), "s-00.tar/b": ("json text", 1), "s-00.tar/g": ("", -1), "s-01.tar/x/a": ("", -1)}
    dropped, notes = source.report.dropped, source.report.notes
    assert dropped["has no picture (png, jpg, jpeg, webp)"] == 1 and dropped["is in the shard twice; the first one counts"] == 1
    assert dropped["has a caption or class that cannot be read"] == 1 and len(dropped) == 4
    assert notes["of a kind that is not read (.pkl)"] == 1 and notes["of a kind that is not read (.seg.png)"] == 1
    batch = source.batch(range(8))
    for image, caption, label in zip(batch.images, batch.captions, batch.labels.tolist(), strict=True):
        if caption == "red":
            assert label == 3 and (image[0] == 1).all() and (image[1] == -1).all()
    assert [i.name for i in shards(tmp_path / "s-*.tar").items] == list(found)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("absent.tar", "does not exist"),
        ("s-{00..05}.tar", "does not exist"),
        ("s-{05..00}.tar", "backwards"),
        ("s-{0..999999999}.tar", "more than 100000"),
        ("http://example.org/s.tar", "download the shards first"),
        ("pipe:cat s.tar", "not a file name"),
    ],
)
def test_shards_that_cannot_be(tmp_path, pattern, message):
    with pytest.raises(DataError, match=message):
        shards(pattern if ":" in pattern else tmp_path / pattern)


def test_a_shard_that_is_none_is_dropped_or_raised(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"PK" * 600)
    tar(tmp_path / "b.tar", [("a.png", png())])
    source = shards(tmp_path / "*.tar")
    assert len(source) == 1 and source.report.dropped == {"is not an uncompressed tar file": 1}
    with pytest.raises(DataError, match=r"a\.tar: is not an uncompressed"):
        shards(tmp_path / "*.tar", on_error="raise")
    os.truncate(tmp_path / "b.tar", 600)
    with pytest.warns(UserWarning, match="cut short"), pytest.raises(DataError, match="no picture"):
        source.batch([0])


# ---- buckets ----


def test_buckets_have_the_area_and_both_orientations():
    sizes = bucket_sizes(512, 64, 2.0)
    assert (512, 512) in sizes and {(w, h) for h, w in sizes} == set(sizes)
    for height, width in sizes:
        assert height % 64 == width % 64 == 0 and max(height, width) <= 2 * min(height, width)
        assert height * width <= 512**2
        assert max((height + 64) * width, height * (width + 64)) > 512**2  # no room for another step
    assert nearest_bucket(1000, 1000, sizes) == sizes.index((512, 512))
    assert sizes[nearest_bucket(200, 100, sizes)][1] > sizes[nearest_bucket(200, 100, sizes)][0]
    assert sizes[nearest_bucket(1, 10_000, sizes)] == max(sizes, key=lambda s: s[0] / s[1])


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), group=st.integers(1, 6), seed=st.integers(0, 99))
def test_every_group_is_one_bucket_and_every_picture_occurs(counts, group, seed):
    members, start = [], 0
    for count in counts:
        members.append(list(range(start, start + count)))
        start += count
    order = Order(members, seed, group)
    single = len(counts) == 1
    length = counts[0] if single else group * sum(math.ceil(c / group) for c in counts)
    for turn in range(2):
        found = [order.locate(c) for c in range(turn * length, (turn + 1) * length)]
        assert {i for _, i in found} == set(range(start))
        assert all(i in members[b] for b, i in found)
        uses = Counter(i for _, i in found)
        for m in members:
            assert max(uses[i] for i in m) - min(uses[i] for i in m) <= 1  # a last group starts over at most once more
        if not single:
            assert all(len({b for b, _ in found[k : k + group]}) == 1 for k in range(0, length, group))


def test_micro_batches_of_all_processes_have_one_shape(tmp_path):
    root = folder(tmp_path, **{f"{i}_png": png(*((60, 30) if i % 3 else (30, 60))) for i in range(10)})
    source = make_source(
        {"type": "images", "folder": str(root), "size": 32, "buckets": {"step": 8, "max_ratio": 2}}, seed=0, batch_size=4
    )
    shapes = [source.batch(range(2 * k, 2 * k + 2)).images.shape for k in range(24)]  # two processes or micro-batches of 2
    assert all(shapes[k] == shapes[k + 1] for k in range(0, 24, 2)) and len(set(shapes)) == 2
    mixed = next(k for k in range(0, 24, 2) if shapes[k] != shapes[k + 2])
    with pytest.raises(DataError, match="of several buckets"):
        source.batch([2 * mixed, 2 * mixed + 4])
    assert source.check().notes == {"in the bucket 40x24": 6, "in the bucket 24x40": 4}


# ---- latents ----


@pytest.fixture
def workspace(tmp_path):
    save_component(tiny_autoencoder(), tmp_path / "autoencoder")
    files = {f"p{i}_png": png(40, 32, colour=(40 * i, 90, 200)) for i in range(4)}
    folder(tmp_path / "data", **files, **{f"p{i}_txt": f"picture {i}" for i in range(4)})
    return tmp_path


SOURCE = {"type": "images", "size": 32, "random_crop": True, "flip": 0.5}


def cached(workspace, **options):
    source = {**SOURCE, "folder": str(workspace / "data"), **options.pop("source", {})}
    settings = {"type": "latents", "source": source, "autoencoder": str(workspace / "autoencoder"), "variants": 3, **options}
    return make_source({**settings, "folder": str(workspace / "latents")}, seed=0)


def files_of(workspace) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in (workspace / "latents").rglob("*.safetensors")}


def test_latents_are_those_of_the_pictures(workspace):
    plain = images(workspace / "data", **{k: v for k, v in SOURCE.items() if k != "type"}, variants=3)
    pictures, latents = plain.batch(range(9)), cached(workspace).batch(range(9))
    assert latents.captions == pictures.captions and latents.images is None
    with torch.no_grad():
        expected = load_component(workspace / "autoencoder").encode(pictures.images)
    torch.testing.assert_close(latents.latents, expected, atol=0.02, rtol=0.02)  # kept in bfloat16
    assert not torch.allclose(latents.latents, expected.flip(0), atol=0.02, rtol=0.02)


def test_only_what_changed_is_made_again(workspace):
    first = cached(workspace)
    assert first.fill() == 4 and first.fill() == 0
    before, batch = files_of(workspace), first.batch(range(8))
    (workspace / "data" / "p2.png").write_bytes(png(40, 32, colour=(1, 2, 3)))
    assert cached(workspace).fill() == 1
    after = files_of(workspace)
    assert len(after) == 5 and all(after[name] == when for name, when in before.items())
    assert cached(workspace, variants=2).fill() == 4
    assert cached(workspace, source={"flip": 0.1}).fill() == 4
    assert cached(workspace, source={"drop_caption": 0.5}).fill() == 0  # captions are not in it
    save_component(tiny_autoencoder(), workspace / "autoencoder")  # with other random weights
    assert cached(workspace).fill() == 4
    assert not torch.equal(cached(workspace).batch(range(8)).latents, batch.latents)


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_entry_is_made_again(workspace, damage):
    first = cached(workspace)
    first.fill()
    wanted = first.batch(range(8)).latents.clone()
    path = first.path(1)
    content = path.read_bytes()
    path.unlink()  # what is mapped stays as it is
    other = first.path(0).read_bytes()[:-2] if damage == "other" else b""
    path.write_bytes({"cut": content[:-7], "empty": b"", "other": other}[damage])
    again = cached(workspace)
    assert torch.equal(again.batch(range(8)).latents, wanted)
    assert again.fill() == 0 and path.read_bytes() == content


def test_a_full_disk_is_no_reason_to_stop(workspace, monkeypatch):
    from distill.data import latents

    source = cached(workspace)

    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(latents, "write_latents", full)
    with pytest.warns(UserWarning, match="No space left on device.*training goes on") as told:
        batch = source.batch(range(8))
    assert len(told) == 1 and files_of(workspace) == {}
    monkeypatch.undo()
    assert torch.equal(cached(workspace).batch(range(8)).latents, batch.latents)


def test_processes_that_fill_one_cache_together(workspace):
    cached(workspace, variants=1).fill()  # everything is imported before the forks
    processes = [forked(lambda: cached(workspace).fill()) for _ in range(3)]
    assert [os.waitpid(p, 0)[1] for p in processes] == [0, 0, 0]
    assert cached(workspace).fill() == 0
    assert not list((workspace / "latents").rglob("*.tmp"))


def test_a_picture_that_cannot_be_read_has_its_neighbours_caption_too(workspace):
    (workspace / "data" / "p1.png").write_bytes(png(64, 64)[:80])
    for _ in range(2):  # encoding, then reading
        source = cached(workspace)
        with pytest.warns(UserWarning, match=r"p1\.png"):
            batch = source.batch(range(8))
        assert "picture 1" not in batch.captions and len(set(batch.captions)) == 3


def test_emoji_have_latents_too(workspace):
    """Three of them; the general cache and the emoji's own give the same."""
    records, pictures = [], {}
    for number in range(3):
        name = f"images/fake/1F60{number}.webp"
        pictures[name] = png(mode="RGBA", colour=(70 * number, 40, 90, 255), format="WEBP", lossless=True)
        known = {"group": "objects", "subgroup": "other", "names": (), "tags": (), "keywords": (), "licence": "MIT"}
        label = f"thing {number}"
        records.append(
            DrawingRecord(file_name=name, pack="fake", family="train", style="fake", hex=f"1F60{number}", label=label, **known)
        )
    write_archive(workspace / "tiny.zip", records, pictures, [r.label for r in records])
    emoji = {"archives": [str(workspace / "tiny.zip")], "size": 32}
    common = {"autoencoder": str(workspace / "autoencoder"), "folder": str(workspace / "latents"), "variants": 2}
    ours = make_source({"type": "latents", "source": {"type": "emoji", **emoji}, **common}, seed=4)
    theirs = make_source({"type": "emoji_latents", "emoji": emoji, **common}, seed=4)
    a, b = ours.batch(range(8)), theirs.batch(range(8))
    assert a.captions == b.captions and torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.latents, b.latents, atol=0.05, rtol=0.05)  # the emoji's are made in bfloat16


def test_prompts_have_no_latents(workspace):
    settings = {"type": "latents", "autoencoder": str(workspace / "autoencoder"), "folder": str(workspace / "latents")}
    (workspace / "p.txt").write_text("a cat")
    with pytest.raises(ValueError, match="needs a source of pictures"):
        make_source({**settings, "source": {"type": "prompts", "file": str(workspace / "p.txt")}}, 0)


def test_the_cache_command(workspace, capsys):
    config = workspace / "c.yaml"
    data = {"type": "latents", "source": {**SOURCE, "folder": str(workspace / "data")}, "folder": str(workspace / "latents")}
    base = {"output": "x", "objective": {"type": "diffusion"}, "network": {}, "max_steps": 1, "batch_size": 2}
    config.write_text(yaml.safe_dump({**base, "data": {**data, "autoencoder": str(workspace / "autoencoder")}}))
    assert cache.main([str(config)]) == 0 and "4 pictures, 4 of them" in capsys.readouterr().out
    assert cache.main([str(config)]) == 0 and "4 pictures, 0 of them" in capsys.readouterr().out
    assert cache.main([str(config), "data.type=images"]) == 2
    assert "wrap them as type: latents" in capsys.readouterr().err


def rewritten(path, latents, **metadata) -> None:
    save_file({"latents": latents}, path, metadata)


def test_latents_that_are_not_what_was_written_are_made_again(workspace):
    """Bits that flipped, NaN with a good hash, no hash, another picture's: each is noticed, and nothing else is made again."""
    source = cached(workspace)
    source.fill()
    good = {index: source.latents(index)[1].clone() for index in range(4)}
    paths = [source.path(index) for index in range(4)]
    data = bytearray(paths[0].read_bytes())
    data[-1] ^= 4
    paths[0].write_bytes(data)
    broken = good[1].clone()
    broken.view(-1)[3] = float("nan")
    rewritten(paths[1], broken, sha256=content_hash(broken))
    rewritten(paths[2], good[2])
    again = cached(workspace)
    assert again.fill() == 3
    for index in range(4):
        assert torch.equal(again.latents(index)[1], good[index])


@pytest.mark.parametrize("kind", ["latents", "emoji_latents"])
def test_an_autoencoder_that_makes_nan_fills_no_cache(workspace, kind):
    broken = tiny_autoencoder()
    torch.nn.init.constant_(next(p for p in broken.parameters() if p.ndim == 4), 3e38)
    save_component(broken, workspace / "autoencoder")
    with pytest.raises(DataError, match=r"NaN or infinite latents of (picture p|the emoji 0 to)"):
        if kind == "latents":
            cached(workspace).fill()
        else:
            where = {"autoencoder": str(workspace / "autoencoder"), "folder": str(workspace / "latents"), "variants": 1}
            make_source({"type": kind, "emoji": {"size": 32}, **where}, seed=0)
    assert files_of(workspace) == {}


def test_settings_of_an_autoencoder_count_beside_its_weights(workspace):
    """The same weights and pictures under a config that says otherwise: other latents, so other files."""
    before = cached(workspace).path(0)
    config = json.loads((workspace / "autoencoder" / "config.json").read_text())
    assert cached(workspace).path(0) == before
    (workspace / "autoencoder" / "config.json").write_text(json.dumps({**config, "latent_scale": 2.0}))
    assert cached(workspace).path(0) != before
