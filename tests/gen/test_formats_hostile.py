"""Files that are damaged, foreign or made to harm: one CheckpointError that names the culprit, nothing else."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gen.io.weights import CheckpointError, TensorFile
from gen.models.formats import detect, read_checkpoint
from tests.gen import published

SHAPES = published.uvit(dim=16, depth=4, size=4, channels=3)


def read(path):
    return read_checkpoint(path, heads=2)


def good(seed=0) -> dict[str, torch.Tensor]:
    return published.tensors(SHAPES, seed)


def written(folder, change=None) -> Path:
    tensors = good()
    if change is not None:
        change(tensors)
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def raw(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


PICKLED = pickle.dumps({"a": 1})
MALFORMED = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "7 bytes": (b"1234567", "not a usable safetensors file"),
    "truncated header": (raw({"a": entry()}, b"1234")[:20], "not a usable"),
    "truncated data": (raw({"a": entry()}, b"12"), "not a usable"),
    "trailing bytes": (raw({"a": entry()}, b"123456"), "not a usable"),
    "header length 2^63": (raw(b"{}", length=2**63), "not a usable"),
    "header length 200 MB": (raw(b"{}", length=200_000_000), "not a usable"),
    "not JSON": (raw(b"{ this is not }"), "not a usable"),
    "not UTF-8": (raw(b'{"\xff\xfe": 1}'), "not a usable"),
    "list header": (raw(b"[]"), "not a usable"),
    "negative shape": (raw({"a": entry(shape=(-1,))}, b"1234"), "not a usable"),
    "overflowing shape": (raw({"a": entry(shape=(2**40, 2**40))}, b"1234"), "not a usable"),
    "shape and bytes differ": (raw({"a": entry(shape=(2,))}, b"1234"), "not a usable"),
    "overlap": (raw({"a": entry(), "b": entry()}, b"1234"), "not a usable"),
    "hole": (raw({"a": entry(), "b": entry(offsets=(8, 12))}, b"123456789012"), "not a usable"),
    "unknown dtype": (raw({"a": entry("F31")}, b"1234"), "not a usable"),
    "deep JSON": (raw(b"[" * 100_000), "not a usable"),
    "metadata that is no text": (raw({"__metadata__": {"a": 1}, "a": entry()}, b"1234"), "not a usable"),
    "name twice": (raw(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), b"1234"), "'a' appears twice"),
    "pickle": (PICKLED, "pickle file, which can run code .*--from-pickle"),
    "zip of torch.save": (b"PK\x03\x04" + b"\0" * 90, "pickle file"),
    "web page": (b"<!DOCTYPE html><html><body>404</body></html>", "web page, not weights"),
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    "no tensors": (raw(b"{}"), "of no format that is known"),
    "foreign names": (raw({"a": entry()}, b"1234"), "of no format that is known .*first tensors are a"),
    "name of a dunder": (raw({"__class__.__init__": entry()}, b"1234"), "of no format"),
    "name with a path": (raw({"../../etc/passwd": entry()}, b"1234"), "of no format"),
    "name with escapes": (raw({"\x1b[2Ja\x00": entry()}, b"1234"), r"\\x1b\[2Ja\\x00"),
    "huge empty shape": (raw({"a": entry(shape=(0, 10**12), offsets=(0, 0))}), "of no format"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files(tmp_path, kind):
    content, message = MALFORMED[kind]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\x1b" not in str(caught.value)


def place(tmp_path, kind) -> Path:
    path = tmp_path / "a.safetensors"
    if kind == "folder":
        path.mkdir()
    if kind == "broken link":
        path.symlink_to(tmp_path / "nothing")
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "pickle":
        path = tmp_path / "a.pth"
        path.write_bytes(PICKLED)
    if kind == "pipeline":
        path.mkdir()
        (path / "model_index.json").write_text("{}")
    if kind == "folder of pickles":
        path.mkdir()
        (path / "diffusion_pytorch_model.bin").write_bytes(PICKLED)
    if kind == "both":
        path.mkdir()
        for name in ("model.safetensors", "model.safetensors.index.json"):
            (path / name).write_bytes(b"{}")
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("folder", "holds none of"),
        ("broken link", "is a link to a file that does not exist"),
        ("pipe", "not a regular file"),
        ("pickle", "pickle file.*--from-pickle"),
        ("pipeline", "diffusers pipeline; give its folder"),
        ("folder of pickles", "pickle files only, such as diffusion_pytorch_model.bin"),
        ("both", "holds both model.safetensors and model.safetensors.index.json"),
    ],
)
def test_what_is_no_file(tmp_path, kind, message):
    with pytest.raises(CheckpointError, match=message):
        read(place(tmp_path, kind))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path):
    path = written(tmp_path)
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_damage_is_found_or_harmless(data):
    """Flipped bytes and cuts: read as other finite numbers, or refused in one sentence; never another error."""
    content = bytearray(_content())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(content) - 1)))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(content[:cut])
        try:
            network = read(path)
        except CheckpointError as error:
            assert str(error).count("\n") == 0
        else:
            assert all(value.isfinite().all() for value in network.state_dict().values())


_cache: list[bytes] = []


def _content() -> bytes:
    if not _cache:
        with tempfile.TemporaryDirectory() as folder:
            _cache.append(written(Path(folder)).read_bytes())
    return _cache[0]


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(name, value):
    return lambda tensors: tensors.update({name: value})


FIRST = "in_blocks.0.attn.proj.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("norm.bias", "norm.bais"), r"lacks norm\.bias; has unknown norm\.bais; did you mean 'norm\.bias'"),
        (rename("mid_block.norm1.bias", "mid_block.norm3.bias"), "did you mean 'mid_block.norm1.bias'"),
        (lambda tensors: tensors.pop("norm.weight"), r"does not fit the format uvit: lacks norm\.weight\.$"),
        (put("extra", torch.ones(1)), "has unknown extra"),
        (put("norm.__class__.__base__", torch.ones(1)), r"has unknown norm\.__class__\.__base__"),
        (put("in_blocks.7.norm1.bias", torch.ones(16)), "not numbered from 0 without a gap"),
        (put("in_blocks.2.norm1.bias", torch.ones(16)), "lacks 'in_blocks.2.attn.proj.bias', which block 0 has"),
        (put("in_blocks.99999999.norm1.bias", torch.ones(16)), "has unknown in_blocks.99999999.norm1.bias"),
        (lambda tensors: tensors.pop("in_blocks.1.mlp.fc2.bias"), "lacks 'in_blocks.1.mlp.fc2.bias', which block 0 has"),
        (put("norm.weight", torch.ones(17)), r"norm\.weight is \(17,\), the model needs \(16,\)"),
        (put("mid_block.attn.qkv.weight", torch.ones(16, 48)), r"is \(16, 48\), the model needs \(48, 16\)"),
        (put("in_blocks.1.norm1.bias", torch.ones(1)), r"'in_blocks.1.norm1.bias' of shape \(1,\), and in block 0 of shape"),
        (put("norm.bias", torch.full((16,), torch.nan)), "'norm.bias' holds NaN or infinite"),
        (put("norm.bias", torch.tensor([0.0] * 15 + [-torch.inf])), "'norm.bias' holds NaN or infinite"),
        (put("norm.bias", torch.zeros(16, dtype=torch.int64)), "no floating numbers where weights are: norm.bias is I64"),
        (put("norm.bias", torch.zeros(16).to(torch.float8_e4m3fn)), "norm.bias is F8_E4M3"),
        (put("pos_embed", torch.zeros(1, 4, 16)), "room for 3 patches in pos_embed, which is no square"),
        (put("pos_embed", torch.zeros(1, 0, 16)), "none of them empty"),
        (put("patch_embed.proj.weight", torch.zeros(0, 3, 2, 2)), "none of them empty"),
        (put("patch_embed.proj.weight", torch.zeros(10**6, 3, 1, 1)), r"where \(3000000, 1000000\) is needed"),
        (put("decoder_pred.weight", torch.zeros(13, 16)), "fills no patch of 2 by 2"),
        (put("decoder_pred.weight", torch.zeros(12)), "where 2 axes are needed"),
    ],
)
def test_tensors_that_do_not_belong(tmp_path, change, message):
    path = written(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_long_lists_are_cut(tmp_path):
    path = written(tmp_path, lambda tensors: tensors.update({f"x{i}": torch.ones(1) for i in range(9)}))
    with pytest.raises(CheckpointError, match="has unknown x0, x1, x2, x3, x4 and 4 more"):
        read(path)


def test_nonfinite_values_on_request(tmp_path):
    path = written(tmp_path, put("norm.bias", torch.full((16,), torch.nan)))
    assert read_checkpoint(path, heads=2, allow_nonfinite=True).norm.bias.isnan().all()


def test_files_of_two_formats_are_refused():
    both = published.dit().keys() | published.pixart().keys()
    with pytest.raises(ValueError, match="fits dit and pixart"):
        detect(both)
    assert [detect(names().keys()) for names in (published.uvit, published.dit, published.pixart)] == ["uvit", "dit", "pixart"]


def shards(folder: Path) -> tuple[dict, list[str]]:
    """The tensors over two files, and their index."""
    names = sorted(SHAPES)
    parts = {"model-1.safetensors": names[:20], "model-2.safetensors": names[20:]}
    for file, inside in parts.items():
        save_file({name: good()[name] for name in inside}, folder / file)
    return {"metadata": {}, "weight_map": {name: file for file, inside in parts.items() for name in inside}}, names


def write_index(folder: Path, index) -> Path:
    (folder / "model.safetensors.index.json").write_text(index if isinstance(index, str) else json.dumps(index))
    return folder


def test_shards_are_one_checkpoint(tmp_path):
    index, _ = shards(tmp_path)
    (tmp_path / "one").mkdir()
    expected, found = read(written(tmp_path / "one")), read(write_index(tmp_path, index))
    assert all(torch.equal(a, b) for a, b in zip(expected.state_dict().values(), found.state_dict().values(), strict=True))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("../model-2.safetensors", "no name of a safetensors file in its folder"),
        ("/etc/passwd", "no name of"),
        ("sub/model-2.safetensors", "no name of"),
        ("model-2.bin", "no name of"),
        ("model-2.safetensors\n", "no name of"),
        ("..", "no name of"),
        (["model-2.safetensors"], "no name of"),
        (None, "no name of"),
        ("model-3.safetensors", "model-3.safetensors: does not exist"),
        ("link.safetensors", "is a link out of its folder"),
        ("chain.safetensors", "is a link out of its folder"),
        ("pipe.safetensors", "not a regular file"),
        ("folder.safetensors", "is a folder"),
    ],
)
def test_shards_stay_in_their_folder(tmp_path, shard, message):
    folder, outside = tmp_path / "in", tmp_path / "model-2.safetensors"
    folder.mkdir()
    index, names = shards(folder)
    (folder / "model-2.safetensors").rename(outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "chain.safetensors").symlink_to(folder / "link.safetensors")
    (folder / "folder.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    index["weight_map"] |= dict.fromkeys(names[20:], shard)
    with pytest.raises(CheckpointError, match=message):
        read(write_index(folder, index))


def test_links_inside_the_folder_and_to_the_hubs_blobs_are_fine(tmp_path):
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "123", tmp_path / "models--a--b" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    index, _ = shards(folder)
    (folder / "model-1.safetensors").rename(blobs / "0123")
    (folder / "model-1.safetensors").symlink_to("../../blobs/0123")
    (folder / "model-2.safetensors").rename(folder / "other.safetensors")
    (folder / "model-2.safetensors").symlink_to("other.safetensors")
    assert read(write_index(folder, index)).config.dim == 16
    (folder / "model-1.safetensors").unlink()
    (blobs / "0123").rename(tmp_path / "0123")
    (folder / "model-1.safetensors").symlink_to(tmp_path / "0123")
    with pytest.raises(CheckpointError, match="link out of its folder"):
        read(folder)


def test_every_tensor_lies_where_the_index_says_once(tmp_path):
    index, names = shards(tmp_path)
    moved = json.loads(json.dumps(index))
    moved["weight_map"][names[0]] = "model-2.safetensors"
    with pytest.raises(CheckpointError, match=rf"model-1.safetensors: holds {names[0]}, which .* does not put there"):
        read(write_index(tmp_path, moved))
    save_file({name: good()[name] for name in names[19:]}, tmp_path / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=rf"model-2.safetensors: holds {names[19]}, which"):
        read(write_index(tmp_path, index))
    save_file({name: good()[name] for name in names[21:]}, tmp_path / "model-2.safetensors")
    with pytest.raises(CheckpointError, match=rf"model-2.safetensors: lacks {names[20]}, which .* puts there"):
        read(write_index(tmp_path, index))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not an object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": [1]}', "no weight_map"),
        ('{"weight_map": {"a": "x.safetensors"}, "auto_map": 1}', "unknown key 'auto_map'"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' appears twice"),
        ("[" * 100_000, "not valid JSON"),
        (" " * 1_000_001, "larger than 1 MB"),
    ],
)
def test_indexes_that_are_none(tmp_path, index, message):
    with pytest.raises(CheckpointError, match=message):
        read(write_index(tmp_path, index))


def test_windows_of_the_file_give_every_tensor_once(tmp_path, monkeypatch):
    monkeypatch.setattr(TensorFile, "WINDOW", 1000)
    tensors = good()
    file = TensorFile(written(tmp_path))
    found = [(name, tensor.clone()) for name, tensor in file.tensors()]
    assert sorted(name for name, _ in found) == sorted(tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found)
    assert [name for name, _ in file.tensors(["norm.bias"])] == ["norm.bias"]
