"""Picture folders and prompts: what is kept, what is dropped and why; every sample a function of its counter."""

from __future__ import annotations

import codecs
import json
import os
import sys
import tarfile
import types
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from distill.data import make_source
from distill.data.__main__ import main as check
from distill.data.decode import decode, probe
from distill.data.errors import DataError
from distill.data.report import Unusable
from gen.models.components import save_component


def png(width=32, height=32, colour=(200, 30, 30), mode="RGB", **options) -> bytes:
    file = BytesIO()
    Image.new(mode, (width, height), colour).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def folder(root: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path = path.with_name(path.name.replace("_png", ".png").replace("_txt", ".txt"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def images(root: Path, seed: int = 0, **options):
    return make_source({"type": "images", "folder": str(root), "size": 16, **options}, seed)


# ---- decoding ----


def pixel(data: bytes, at=(0, 0), **options) -> tuple[int, ...]:
    return decode(data, **options).getpixel(at)


def test_modes_become_rgb():
    assert pixel(png(mode="L", colour=77)) == (77, 77, 77)
    assert pixel(png(mode="1", colour=1)) == (255, 255, 255)
    assert pixel(png(mode="RGBA", colour=(0, 0, 0, 0))) == (255, 255, 255)
    assert pixel(png(mode="RGBA", colour=(0, 0, 0, 0)), background=(1, 2, 3)) == (1, 2, 3)
    assert pixel(png(mode="RGBA", colour=(0, 0, 0, 51))) == (204, 204, 204)
    assert pixel(png(mode="LA", colour=(9, 255))) == (9, 9, 9)
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    file = BytesIO()
    palette.save(file, "PNG")
    assert pixel(file.getvalue()) == (10, 200, 30)
    file = BytesIO()
    palette.save(file, "PNG", transparency=1)
    assert pixel(file.getvalue()) == (255, 255, 255)
    cmyk = pixel(png(mode="CMYK", colour=(0, 255, 255, 0), format="JPEG", quality=100))
    assert np.abs(np.subtract(cmyk, (255, 0, 0))).max() < 6


def test_sixteen_bits_are_rounded_to_eight():
    file = BytesIO()
    Image.fromarray(np.full((20, 20), 257 * 200, np.uint16)).save(file, "PNG")
    assert pixel(file.getvalue()) == (200, 200, 200)


def test_pictures_are_turned_as_exif_says():
    image = Image.new("RGB", (30, 20), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 15, 20))  # the left half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right: left becomes top
    file = BytesIO()
    image.save(file, "PNG", exif=exif)
    assert probe(file.getvalue()) == (20, 30)
    turned = decode(file.getvalue())
    assert turned.size == (20, 30) and turned.getpixel((10, 2)) == (255, 0, 0) and turned.getpixel((10, 28)) == (0, 0, 255)


def test_an_animation_is_its_first_frame():
    frames = [Image.new("RGB", (20, 20), c) for c in ((255, 0, 0), (0, 255, 0))]
    for format in ("GIF", "WEBP"):
        file = BytesIO()
        frames[0].save(
            file, format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
        )
        assert pixel(file.getvalue()) == (255, 0, 0)


def bomb() -> bytes:
    """A PNG that claims 9000 x 9000 pixels, in 60 bytes."""
    small = bytearray(png(1, 1))
    small[16:24] = (9000).to_bytes(4, "big") * 2
    import zlib

    small[29:33] = zlib.crc32(bytes(small[12:29])).to_bytes(4, "big")
    return bytes(small)


BAD = {
    "bomb": (bomb(), "more than 64 million pixels"),
    "empty": (b"", "is empty"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    "html": (b"<!DOCTYPE html><html>404</html>", "is not a picture"),
    "cut": (png(64, 64)[:60], "damaged|not a picture"),
    "tiny": (png(1, 1), "side of less than 16 pixels"),
    "thin": (png(1, 1000), "side of less than 16 pixels"),
    "icon": (png(format="ICO"), "is not a picture in one of"),
    "nan": (png(mode="F", colour=float("nan"), format="TIFF"), "NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bytes_that_are_no_usable_picture(name):
    content, reason = BAD[name]
    with pytest.raises(Unusable, match=reason):
        decode(content, least=16)


# ---- folders ----


def test_a_folder_of_good_and_bad_files(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    for name, (content, _) in BAD.items():
        (root / f"{name}.png").write_bytes(content)
    (root / "good.png").write_bytes(png())
    (root / "wide.jpg").write_bytes(png(64, 20, format="JPEG"))
    (root / "notes.doc").write_bytes(b"x")
    (outside / "secret.png").write_bytes(png())
    (root / "leads-out.png").symlink_to(outside / "secret.png")
    (root / "to-nothing.png").symlink_to(root / "absent.png")
    (root / "inside-link.png").symlink_to(root / "good.png")
    (root / "folder-link").symlink_to(outside)
    os.mkfifo(root / "pipe.png")
    (root / os.fsdecode(b"b\xffad.png")).write_bytes(png())
    source = images(root)
    assert sorted(item.name for item in source.items) == sorted(
        ["good.png", "wide.jpg", "inside-link.png", "cut.png", "nan.png", os.fsdecode(b"b\xffad.png")]
    )  # cut.png and nan.png are only bad behind their headers
    dropped = source.report.dropped
    assert dropped["is a link that leads out of the folder"] == 1
    assert dropped["is missing, or a link to nothing"] == 1
    assert dropped["is not a regular file"] == 1
    assert dropped["is a link to a folder"] == 1
    assert dropped["is empty"] == 1
    assert dropped["has more than 64 million pixels"] == 1
    assert dropped["has a side of less than 16 pixels"] == 2
    assert sum(dropped.values()) >= 10
    assert "good.png" not in "\n".join(source.report.lines())
    report = source.check()
    assert report.kept == 4 and report.examples["is damaged (OSError)"] == ["cut.png"]
    "\n".join(report.lines()).encode()  # a terminal can show it
    with pytest.raises(DataError, match="on_error: skip"):
        images(root, on_error="raise")


def test_a_picture_damaged_behind_its_header_is_replaced_by_the_next(tmp_path):
    root = folder(tmp_path, a_png=png(colour=(255, 0, 0)), b_png=png(64, 64)[:80], c_png=png(colour=(0, 0, 255)))
    source = images(root, threads=1)
    assert len(source) == 3
    with pytest.warns(UserWarning, match=r"b\.png is damaged"):
        batch = source.batch(range(12))
    again = images(root, threads=4)
    with pytest.warns(UserWarning, match=r"b\.png"):
        other = torch.cat([again.batch([c]).images for c in reversed(range(12))]).flip(0)
    assert torch.equal(batch.images, other)  # whatever was asked for first
    report = images(root).check()
    assert report.kept == 2 and sum(report.dropped.values()) == 1


def test_a_file_deleted_after_the_listing(tmp_path):
    root = folder(tmp_path, a_png=png(), b_png=png(colour=(0, 255, 0)))
    source = images(root)
    (root / "a.png").unlink()
    with pytest.warns(UserWarning, match=r"a\.png is missing"):
        batch = source.batch(range(4))
    assert (batch.images[:, 1] > 0.9).all()
    (root / "b.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no picture of a bucket can be read"):
        source.batch(range(4))


@pytest.mark.parametrize("files", [{}, {"a_txt": "text"}, {"a_png": b"no"}])
def test_keeping_nothing_is_an_error(tmp_path, files):
    with pytest.raises(DataError, match="gives no samples"):
        images(folder(tmp_path, **files))


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        images(tmp_path / "absent")


def test_one_picture_is_enough(tmp_path):
    batch = images(folder(tmp_path, a_png=png())).batch(range(3))
    assert batch.images.shape == (3, 3, 16, 16) and batch.captions == [""] * 3 and batch.labels is None


def test_captions_beside_the_pictures(tmp_path):
    root = folder(
        tmp_path,
        a_png=png(),
        a_txt=" a  red\nsquare ",
        b_png=png(),
        c_png=png(),
        c_txt="x" * 20_000,
        d_png=png(),
        d_txt=b"\xff\xfe",
        e_png=png(),
        e_txt="",
    )
    source = images(root)
    assert source.captions == "txt"
    assert {item.name: item.caption for item in source.items} == {"a.png": "a red square", "b.png": "", "e.png": ""}
    assert source.report.notes == {"kept with an empty caption": 2}
    assert len(source.report.dropped) == 2
    kept = images(root, missing_caption="drop")
    assert [item.name for item in kept.items] == ["a.png"] and kept.report.dropped["has no caption"] == 2


def test_captions_as_other_programs_write_them(tmp_path):
    """Byte-order marks, UTF-16 that begins with one, and the endings that other trainers read."""
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(png())
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa cat")
    (tmp_path / "b.txt").write_bytes("a câle".encode("utf-16"))
    (tmp_path / "c.txt").write_bytes(codecs.BOM_UTF16_BE + "a dog".encode("utf-16-be"))
    (tmp_path / "d.caption").write_text("a bird")
    (tmp_path / "e.TXT").write_text("a fish")
    (tmp_path / "f.txt").write_text("first")
    (tmp_path / "f.caption").write_text("second")
    source = images(tmp_path)
    assert [item.caption for item in source.items] == ["a cat", "a câle", "a dog", "a bird", "a fish", "first"]
    assert source.report.notes == {"with a caption from a .caption file": 1, "with a caption from a .TXT file": 1}


def test_every_text_may_begin_with_a_byte_order_mark(tmp_path):
    """One loop over what reads text: prompts, rows, JSON, YAML, layouts, tables of steps."""
    from distill.config import read_yaml
    from gen.io.errors import decode_text, read_text
    from gen.io.weights import read_json
    from gen.tasks.layout.file import read_layout

    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "p.txt").write_bytes("a cat\r\na dog\r\n".encode(encoding))
        assert make_source({"type": "prompts", "file": str(tmp_path / "p.txt")}, 0).prompts == ["a cat", "a dog"]
        (tmp_path / "a.json").write_bytes('{"a": 1}'.encode(encoding))
        assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "a.json") == {"a": 1}
        (tmp_path / "l.yaml").write_bytes("regions:\n- {prompt: a cat, box: [0, 0, 1, 1]}".encode(encoding))
        assert read_layout(tmp_path / "l.yaml").regions[0].prompt == "a cat"
        assert read_text(tmp_path / "p.txt").startswith("a cat")
    root = folder(tmp_path / "rows", a_png=png())
    (root / "metadata.jsonl").write_bytes(b'\xef\xbb\xbf{"file_name": "a.png", "text": "a cat"}\n')
    assert images(root).items[0].caption == "a cat"
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"\xff\xfe")


def test_subfolders_are_classes(tmp_path):
    root = folder(tmp_path, zebra__a_png=png(), ant_hill__b_png=png(), ant_hill__deep__c_png=png())
    source = images(root)
    assert {i.name: (i.caption, i.label) for i in source.items} == {
        "zebra/a.png": ("zebra", 1),
        "ant_hill/b.png": ("ant hill", 0),
        "ant_hill/deep/c.png": ("ant hill", 0),
    }
    assert set(source.batch(range(9)).labels.tolist()) == {0, 1}


def test_metadata_lines(tmp_path):
    root = folder(tmp_path / "data", a_png=png(), b_png=png(), sub__c_png=png(), unlisted_png=png())
    folder(tmp_path, outside_png=png())
    rows = [
        json.dumps({"file_name": "a.png", "text": "first", "label": "dog", "other": 1}),
        "not json",
        json.dumps({"file_name": "../outside.png", "text": "x"}),
        json.dumps({"file_name": str(tmp_path / "outside.png"), "text": "x"}),
        json.dumps({"file_name": "a.png", "text": "again"}),
        json.dumps({"file_name": "./b.png", "caption": "second", "label": "cat"}),
        json.dumps({"file_name": "gone.png", "text": "x"}),
        json.dumps({"text": "no name"}),
        json.dumps({"file_name": "sub/c.png", "text": 3}),
        '{"file_name": "sub/c.png", "text": "\\ud800"}',
        json.dumps({"file_name": "x.png", "label": True}),
        json.dumps({"file_name": "nul\0.png"}),
        "[" * 100_000,
        "",
    ]
    (root / "metadata.jsonl").write_text("\n".join(rows))
    source = images(root)
    assert {i.name: (i.caption, i.label) for i in source.items} == {"a.png": ("first", 1), "b.png": ("second", 0)}
    dropped, examples = source.report.dropped, source.report.examples
    assert examples["is not JSON"] == ["metadata.jsonl, line 2", "metadata.jsonl, line 13"]
    assert dropped["has a name that leads out of the folder"] == 3
    assert dropped["names a file that an earlier line names"] == 1
    assert examples["has no line in metadata.jsonl"] == ["unlisted.png"]
    assert dropped["is missing, or a link to nothing"] == 1
    assert dropped["has a caption with half a surrogate pair"] == 1
    with pytest.raises(DataError, match="line 2"):
        images(root, on_error="raise")


# ---- order, views ----


def numbered(root: Path, count: int) -> Path:
    return folder(root, **{f"p{i:02d}_png": png(colour=(i, 0, 0)) for i in range(count)})


def which(batch) -> list[int]:
    return [round(float(x)) for x in (batch.images[:, 0].mean((1, 2)) + 1) * 127.5]


def test_every_picture_once_in_a_pass_in_another_order_each(tmp_path):
    source = images(numbered(tmp_path, 7))
    seen = [which(source.batch(range(start, start + 7))) for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in seen) and len({tuple(one) for one in seen}) == 3
    assert which(images(tmp_path, seed=1).batch(range(7))) != seen[0]
    assert which(source.batch([9, 3, 9])) == [seen[1][2], seen[0][3], seen[1][2]]


def test_views_are_those_of_the_variant(tmp_path):
    wide = Image.new("RGB", (64, 32))
    wide.putdata([(x * 4, 0, 0) for y in range(32) for x in range(64)])
    wide.save(tmp_path / "wide.png")
    source = images(tmp_path, random_crop=True, flip=0.5, size=32)
    index, plain = source.variant(0, 0)
    assert plain[0, 0].tolist() == pytest.approx([(x + 16) * 4 / 127.5 - 1 for x in range(32)], abs=1e-6)  # the middle
    views = [source.variant(0, k)[1][0, 0] for k in range(1, 60)]
    flipped = [bool(row[0] > row[-1]) for row in views]
    assert 15 < sum(flipped) < 45
    starts = [min(float(row[0]), float(row[-1])) for row in views]
    assert min(starts) < -0.9 and max(starts) > -0.05  # from one end to the other
    assert torch.equal(images(tmp_path, seed=5, random_crop=True, flip=0.5, size=32).variant(0, 7)[1], source.variant(0, 7)[1])
    padded = images(tmp_path, resize="pad", size=32, background=(0, 255, 0)).variant(0, 0)[1]
    assert (padded[1, :8] == 1).all() and (padded[1, 24:] == 1).all() and (padded[1, 9:23] == -1).all()
    stretched = images(tmp_path, resize="stretch", size=32).variant(0, 0)[1]
    assert stretched[0, 0, 0] < -0.9 and stretched[0, 0, -1] > 0.9
    assert index == 0


def test_captions_are_dropped_by_counter(tmp_path):
    source = images(folder(tmp_path, a_png=png(), a_txt="here"), drop_caption=0.3)
    captions = source.batch(range(400)).captions
    assert 80 < captions.count("") < 160
    assert source.batch([17]).captions == captions[17:18]


# ---- prompts, the datasets library, the command ----


def test_prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"a cat\n\na dog\r\na  cat\nb\xff\n" + b"x" * 20_000 + b"\nein Haus")
    source = make_source({"type": "prompts", "file": str(file)}, 3)
    assert source.prompts == ["a cat", "a dog", "ein Haus"]
    assert sorted(source.report.examples) == [
        "has a caption of more than 16 KiB",
        "is a prompt that an earlier line has",
        "is not UTF-8",
    ]
    first = source.batch(range(3))
    assert sorted(first.captions) == ["a cat", "a dog", "ein Haus"] and first.images is None
    assert source.batch([1, 4]).captions == [first.captions[1], source.batch(range(3, 6)).captions[1]]
    with pytest.raises(DataError, match="does not exist"):
        make_source({"type": "prompts", "file": str(tmp_path / "absent")}, 0)
    file.write_text("\n\n")
    with pytest.raises(DataError, match="gives no samples"):
        make_source({"type": "prompts", "file": str(file)}, 0)


class FakeRows(list):
    column_names = ("picture", "title", "kind")

    def cast_column(self, name, feature):
        assert name == "picture" and feature == "undecoded"
        return self


def fake_datasets(monkeypatch, rows, kind="parquet"):
    """The calls that the source makes of the library, which is not among what the tests need."""
    builder, prepared = types.SimpleNamespace(name=kind), []
    builder.download_and_prepare = lambda: prepared.append(True)
    builder.as_dataset = lambda split: FakeRows(rows) if prepared and split == "train" else None
    module = types.ModuleType("datasets")
    module.load_dataset_builder = lambda path, name, revision: builder
    module.Image = lambda decode: "undecoded" if not decode else "decoded"
    monkeypatch.setitem(sys.modules, "datasets", module)
    return prepared


HUB = {"type": "huggingface", "path": "owner/name", "size": 16, "image": "picture", "text": "title", "label": "kind"}


def test_rows_of_the_datasets_library(monkeypatch):
    good = {"picture": {"bytes": png(colour=(0, 255, 0)), "path": None}, "title": "green", "kind": 2}
    rows = [good, {**good, "picture": {"bytes": None, "path": "/etc/passwd"}}, {**good, "title": 5}, {**good, "kind": "x"}]
    fake_datasets(monkeypatch, [*rows, {**good, "picture": {"bytes": b"GIF89a", "path": "x"}}])
    source = make_source(HUB, 0)
    batch = source.batch(range(2))
    assert len(source) == 1 and batch.captions == ["green"] * 2 and batch.labels.tolist() == [2, 2]
    assert (batch.images[:, 1] == 1).all() and sum(source.report.dropped.values()) == 4
    with pytest.raises(DataError, match="has no column 'image'; its columns are picture, title, kind"):
        make_source({**HUB, "image": "image"}, 0)


def test_data_sets_that_are_code_or_pickles_are_refused(monkeypatch):
    for builder in ("pandas", "their_script", "webdataset"):
        prepared = fake_datasets(monkeypatch, [], builder)
        with pytest.raises(DataError, match=f"is of kind '{builder}'"):
            make_source(HUB, 0)
        assert not prepared


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        make_source(HUB, 0)


def test_the_check_command(tmp_path, capsys):
    root = folder(tmp_path / "data", a_png=png(), b_png=png(64, 64)[:80])
    config = tmp_path / "c.yaml"
    base = {"output": "x", "objective": {"type": "diffusion"}, "network": {}, "max_steps": 1, "batch_size": 2}
    config.write_text(yaml.safe_dump({**base, "data": {"type": "images", "folder": str(root)}}))
    assert check(["check", str(config)]) == 0
    said = capsys.readouterr().out
    assert "1 kept, 1 dropped" in said and "b.png" in said
    (root / "a.png").unlink()
    assert check(["check", str(config)]) == 2
    assert "gives no samples" in capsys.readouterr().err


def test_captions_in_files_of_other_spellings(tmp_path):
    """kohya's .caption, and .TXT of cameras and Windows: read, and noted; of several files the .txt."""
    root = tmp_path / "pictures"
    root.mkdir()
    for i in range(5):
        (root / f"{i}.png").write_bytes(png(colour=(40 * i, 0, 0)))
    for name, text in {"0.caption": "zero", "1.TXT": "one", "2.Caption": "two", "3.txt": "three", "3.caption": "x"}.items():
        (root / name).write_text(text)
    (root / "9.caption").write_text("of no picture")
    source = images(root)
    assert source.captions == "txt"
    assert [item.caption for item in source.items] == ["zero", "one", "two", "three", ""]
    assert source.report.notes == {
        "with a caption from a .caption file": 1,
        "with a caption from a .TXT file": 1,
        "with a caption from a .Caption file": 1,
        "kept with an empty caption": 1,
    }


@pytest.mark.parametrize("change", ["pixels", "caption", "label", "name", "order"])
def test_whatever_samples_depend_on_changes_the_digest(tmp_path, change):
    def write(root, **changed):
        rows = [{"file_name": f"{i}.png", "text": f"picture {i}", "label": i} for i in range(3)]
        files = {f"{i}.png": png(colour=(40 * i, 0, 0)) for i in range(3)}
        if change == "pixels" and changed:
            files["1.png"] = png(colour=(41, 0, 0))
        elif changed and change in ("caption", "label"):
            rows[1] |= {"text": "other"} if change == "caption" else {"label": 2}
        elif changed and change == "name":
            files["5.png"], rows[1]["file_name"] = files.pop("1.png"), "5.png"
        elif changed:
            rows.reverse()
        root.mkdir()
        for name, content in files.items():
            (root / name).write_bytes(content)
        (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        return images(root).digest()

    assert write(tmp_path / "a") == write(tmp_path / "b") != write(tmp_path / "c", changed=True)


def test_what_is_held_out_depends_on_a_picture_alone(tmp_path):
    """About the share asked for; copies of a picture on one side; the same with more pictures, another seed, other names."""
    files = {f"p{i}_png": png(colour=(i % 256, i // 4, 90)) for i in range(60)}
    root = folder(tmp_path / "a", **files, copy_png=files["p7_png"])
    train, held = images(root).split(0.3)
    names = [{item.name for item in part.items} for part in (train, held)]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 61 and 8 <= len(names[1]) <= 30
    assert {"p7.png", "copy.png"} <= names[0] or {"p7.png", "copy.png"} <= names[1]
    more = folder(tmp_path / "b", **{f"x{k}": v for k, v in files.items()}, **{"new_png": png(colour=(255, 255, 255))})
    again = {item.name.removeprefix("x") for item in images(more, seed=5).split(0.3)[1].items}
    assert again - {"new.png"} == names[1] - {"copy.png"}
    asked = {tuple(image.flatten().tolist()) for image in train.batch(range(120)).images}
    assert not asked & {tuple(image.flatten().tolist()) for image in held.batch(range(60)).images}
    for share in (1e-9, 1 - 1e-9):
        assert all(len(part) for part in images(root).split(share))
    with pytest.raises(DataError, match="fewer than two different pictures"):
        images(folder(tmp_path / "c", a_png=png(), b_png=png())).split(0.5)


@pytest.mark.parametrize("kind", ["emoji", "emoji_latents", "latents", "webdataset", "prompts"])
def test_every_source_can_be_split(tmp_path, kind):
    """No picture, or prompt, is on both sides, and both give batches."""
    from tests.distill.evaluation import VENDORS, archive
    from tests.gen.conftest import tiny_autoencoder

    save_component(tiny_autoencoder(), tmp_path / "autoencoder")
    archive(tmp_path / "emoji.zip", VENDORS)
    emoji = {"archives": [str(tmp_path / "emoji.zip")], "size": 32}
    kept = {"autoencoder": str(tmp_path / "autoencoder"), "folder": str(tmp_path / "kept"), "variants": 1}
    files = {f"{i}.png": png(colour=(20 * i, 40, 60)) for i in range(9)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data_ in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data_)
            tar.addfile(info, BytesIO(data_))
    (tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(20)))
    config = {
        "emoji": {"type": "emoji", **emoji, "variants": 1},
        "emoji_latents": {"type": "emoji_latents", "emoji": emoji, **kept},
        "latents": {"type": "latents", "source": {"type": "webdataset", "shards": str(tmp_path / "a.tar"), "size": 32}, **kept},
        "webdataset": {"type": "webdataset", "shards": str(tmp_path / "a.tar"), "size": 16},
        "prompts": {"type": "prompts", "file": str(tmp_path / "p.txt")},
    }[kind]
    seen = []
    for part in make_source(config, 0).split(0.4):
        batch = part.batch(range(40))
        rows = batch.captions if kind == "prompts" else batch.latents if batch.latents is not None else batch.images
        seen.append({row if isinstance(row, str) else tuple(row.flatten().tolist()) for row in rows})
    assert seen[0] and seen[1] and not seen[0] & seen[1]
