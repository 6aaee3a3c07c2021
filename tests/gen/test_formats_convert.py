"""`fewstep convert`: between formats, and pickles under limits."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.cli.app import main
from gen.models.components import load_component, save_component
from gen.models.formats.pickles import convert_pickle
from gen.nn.registry import build
from tests.gen import published

SHAPES = published.dit(dim=24, depth=2, size=6, channels=3, rows=6)


def weights(dtype=torch.float32):
    return published.tensors(SHAPES, dtype=dtype, positions=published.sincos(6, 2, 24))


def same(path, expected) -> bool:
    found = load_file(path)
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.filterwarnings("ignore:This network has")
def test_there_and_back_by_the_command(tmp_path, capsys):
    save_file(weights(torch.bfloat16), tmp_path / "a.safetensors")
    steps = [("a.safetensors", "folder", "diffusers-dit"), ("folder", "own", "fewstep"), ("own", "b.safetensors", "dit")]
    for source, target, to in steps:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target), "--to", to, "--heads", "2"]) == 0
        assert capsys.readouterr().out == f"{tmp_path / target}\n"
    assert load_component(tmp_path / "own").config.heads == 2
    back = load_file(tmp_path / "b.safetensors")
    assert same(tmp_path / "b.safetensors", {**{name: value.float() for name, value in weights(torch.bfloat16).items()},
                                             "pos_embed": back["pos_embed"]})  # fmt: skip
    kept = load_file(tmp_path / "folder/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.bfloat16}
    arguments = ["convert", str(tmp_path / "own"), str(tmp_path / "c.safetensors"), "--to", "dit", "--dtype", "float16"]
    assert main(arguments) == 0
    assert {value.dtype for value in load_file(tmp_path / "c.safetensors").values()} == {torch.float16}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.safetensors", "b.safetensors"], "--to FORMAT"),
        (["a.safetensors", "b.safetensors", "--to", "di"], "Unknown format 'di'; did you mean 'dit'"),
        (["a.safetensors", "a.safetensors", "--to", "dit"], "exists, and nothing is overwritten"),
        (["a.safetensors", "b.safetensors", "--to", "dit"], "number of heads is unknown; give --heads"),
        (["a.safetensors", "b.safetensors", "--to", "uvit", "--heads", "2"], "networks of type uvit"),
        (["a.safetensors", "b.pt", "--to", "dit", "--heads", "2"], "ends in .safetensors"),
        (["a.safetensors", "b.safetensors", "--to", "diffusers-dit", "--heads", "2"], "is a folder"),
        (["a.safetensors", "b.safetensors", "--to", "dit", "--dtype", "int8"], "Unknown dtype 'int8'"),
        (["a.safetensors", "b.safetensors", "--to", "dit", "--key", "ema"], "give it with --from-pickle"),
        (["a.pt", "b.safetensors", "--to", "dit"], "pickle file.*--from-pickle"),
        (["a.pt", "b.safetensors", "--from-pickle", "--to", "dit"], "convert again"),
        (["a.pt", "a.safetensors", "--from-pickle"], "nothing is overwritten"),
        (["a.pt", "link.safetensors", "--from-pickle"], "nothing is overwritten"),
        (["a.pt", "b.pt", "--from-pickle"], "ends in .safetensors"),
        (["a.safetensors", "b.safetensors", "--from-pickle"], "not a pickle of torch"),
        (["none.pt", "b.safetensors", "--from-pickle"], "does not exist"),
        (["pipe.pt", "b.safetensors", "--from-pickle"], "not a regular file"),
    ],
)
@pytest.mark.timeout(60)
def test_refusals_are_one_sentence_and_leave_nothing(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_file(weights(), "a.safetensors")
    torch.save(weights(), "a.pt")
    os.symlink("nowhere", "link.safetensors")
    os.mkfifo("pipe.pt")
    before = sorted(os.listdir())
    assert main(["convert", *arguments]) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(os.listdir()) == before and same("a.safetensors", weights())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("wrap", "key", "taken"),
    [
        (lambda w: w, None, []),
        (lambda w: {"ema": w, "model": {"other": torch.ones(1)}, "opt": {"state": {}}, "step": 3}, None, ["ema"]),
        (lambda w: {"state_dict": w, "epoch": 1}, None, ["state_dict"]),
        (lambda w: {"model": {"state_dict": w, "n": 1}}, None, ["model", "state_dict"]),
        (lambda w: {"ema": {"other": torch.ones(1)}, "model": w}, "model", ["model"]),
        (lambda w: {"mine": w, "n": 1}, "mine", ["mine"]),
    ],
)
def test_pickles_of_tensors(tmp_path, wrap, key, taken, legacy):
    torch.save(wrap(weights()), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert convert_pickle(tmp_path / "a.pt", tmp_path / "a.safetensors", key) == taken
    assert same(tmp_path / "a.safetensors", weights())


def test_tensors_in_one_memory_are_written_apart(tmp_path):
    base = torch.arange(12.0)
    tensors = {"a": base, "b": base, "c": base[4:8], "d": base.view(3, 4).T, "e": torch.nn.Parameter(torch.ones(2))}
    torch.save(tensors, tmp_path / "a.pth")
    convert_pickle(tmp_path / "a.pth", tmp_path / "a.safetensors")
    assert same(tmp_path / "a.safetensors", {name: value.detach() for name, value in tensors.items()})


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def deflated(path, level=zipfile.ZIP_DEFLATED):
    """A torch file again, compressed: 100 MB of zeros in a few KB."""
    torch.save({"a": torch.zeros(25_000_000)}, path)
    with zipfile.ZipFile(path) as source:
        entries = {entry.filename: source.read(entry) for entry in source.infolist()}
    with zipfile.ZipFile(path, "w", level) as target:
        for name, content in entries.items():
            target.writestr(name, content)


@pytest.mark.parametrize(
    "kind", ["evil", "evil zip", "namespace", "deflated", "stride 0", "no tensors", "text", "key", "sparse"]
)
def test_pickles_that_harm_or_hold_something_else(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "evil":
        (tmp_path / "a.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    elif kind == "deflated":
        deflated(tmp_path / "a.pt")
        assert (tmp_path / "a.pt").stat().st_size < 200_000
    else:
        content = {
            "evil zip": {"a": Evil()},
            "namespace": {"model": weights(), "args": argparse.Namespace(a=1)},
            "stride 0": {"a": torch.zeros(1).expand(10**12)},
            "no tensors": {"a": 1, "b": torch.ones(1)},
            "text": "weights",
            "key": {"model": weights()},
            "sparse": {"a": torch.eye(3).to_sparse()},
        }[kind]
        torch.save(content, tmp_path / "a.pt")
    message = {
        "evil": "without running its code .*mkdir",
        "evil zip": "without running its code .*mkdir",
        "namespace": "without running its code .*argparse.Namespace",
        "deflated": "is compressed",
        "stride 0": "unfolds into 4000000000000 bytes",
        "no tensors": "entries that are no tensors: a; name the entry",
        "text": "holds a str",
        "key": "no entry 'emma' of weights; its entries are model",
        "sparse": "cannot hold|sparse",
    }[kind]
    with pytest.raises(ValueError, match=message) as caught:
        convert_pickle(tmp_path / "a.pt", tmp_path / "a.safetensors", "emma" if kind == "key" else None)
    assert "\n" not in str(caught.value)
    assert os.listdir() == ["a.pt"]


def test_damaged_pickles(tmp_path):
    torch.save(weights(), tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    for cut in (0, 1, 2, 10, 1000, len(content) // 2, len(content) - 10):
        (tmp_path / "b.pt").write_bytes(content[:cut])
        with pytest.raises(ValueError, match=r"damaged|not a pickle|without running|cannot be opened"):
            convert_pickle(tmp_path / "b.pt", tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_our_own_folder_to_a_published_file(tmp_path):
    network = build({"type": "uvit", "size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 2, "heads": 2})
    save_component(network, tmp_path / "own")
    assert main(["convert", str(tmp_path / "own"), str(tmp_path / "a.safetensors"), "--to", "uvit"]) == 0
    assert load_file(tmp_path / "a.safetensors").keys() == published.uvit(dim=16, depth=2, size=4, channels=3).keys()
