"""What is checked before a model opens: vocabularies, regular files, variants, single files; and what is read only once."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from gen.generator import Generator
from gen.io import digests
from gen.io.weights import CheckpointError, load_weights, sha256
from gen.models.bridge.load import load_tokenizer, variants_for
from gen.models.bridge.pipeline import needed_files, read_index
from gen.models.hub import hub_errors
from gen.models.pretrained import load_model, resolve_dtype
from tests.gen import pipelines


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return pipelines.save(pipelines.stable_diffusion(), tmp_path_factory.mktemp("good") / "sd")


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "sd"))


@pytest.fixture(autouse=True)
def own_digests(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_known", None)


def refused(folder: Path, match: str, **options) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        Generator.from_pretrained(folder, device="cpu", dtype="float32", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "name", "ways"),
    [
        (pipelines.clip_tokenizer, "CLIPTokenizer", "tokenizer.json or vocab.json and merges.txt"),
        (pipelines.t5_tokenizer, "T5Tokenizer", "tokenizer.json or spiece.model"),
        (pipelines.t5_tokenizer, "GemmaTokenizer", "tokenizer.json or tokenizer.model"),
    ],
)
def test_a_tokenizer_without_its_vocabulary(tmp_path, build, name, ways):
    """transformers opens it without a word, and all prompts are then the same."""
    folder = tmp_path / "tokenizer"
    build().save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=f"has no vocabulary: a {name} needs {ways}.*download it again"):
        load_tokenizer(folder, name)


def test_half_a_vocabulary_and_an_empty_one(folder):
    part = folder / "tokenizer"
    vocabulary = json.loads((part / "tokenizer.json").read_text())["model"]["vocab"]
    (part / "tokenizer.json").unlink()
    (part / "vocab.json").write_text(json.dumps(vocabulary))
    refused(folder, "tokenizer: lacks merges.txt: a CLIPTokenizer needs")
    (part / "merges.txt").write_text("#version: 0.2\n")
    Generator.from_pretrained(folder, device="cpu", dtype="float32")
    (part / "vocab.json").write_text("{}")
    refused(folder, "tokenizer: (holds a vocabulary that reads no words|cannot be opened)")


def test_a_sentencepiece_vocabulary(tmp_path, monkeypatch):
    """As PixArt's folders have it: read where the two packages are there, and both are named where not."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    lines = iter(["a red cat on the moon", "the dog runs", "hello world of pictures and words"] * 20)
    file = tmp_path / "spiece.model"
    with open(file, "wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=writer, vocab_size=28, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2
        )
    tokenizer = load_tokenizer(tmp_path, "T5Tokenizer")
    assert "".join(tokenizer.tokenize("a red cat")) == "▁a▁red▁cat"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        CheckpointError, match=r"missing here: sentencepiece and protobuf\. Run pip install sentencepiece protobuf"
    ):
        load_tokenizer(tmp_path, "T5Tokenizer")


@pytest.mark.parametrize("name", ["tokenizer/merges.txt", "tokenizer/added_tokens.json", "text_encoder/generation_config.json",
                                  "unet/adapter_config.json", "vae/config.json"])  # fmt: skip
def test_pipes_in_a_folder_are_refused(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, f"{Path(name).name}: is not a regular file")


def test_suggestions_only_where_near(folder):
    index = folder / "model_index.json"
    for name, near in (
        ("BriaFibo2Pipeline", None),
        ("KandinskyPipeline", None),
        ("StableDiffusionXLAdaptPipeline", "StableDiffusionXLPipeline"),
        ("PixartAlphaPipeline", "PixArtAlphaPipeline"),
    ):
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))
        refused(folder, f"is a '{name}'; {'did you mean ' + near if near else 'pipelines that can be opened'}")


def test_gated_and_missing_repositories_say_what_to_do():
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    response = SimpleNamespace(headers={}, request=None, status_code=403)
    for error, match in (
        (GatedRepoError("403", response=response), r"is gated: accept its licence at https://huggingface.co/a/b, then log in"),
        (RepositoryNotFoundError("404", response=response), r"no such repository, or a private one: check the name, or log in"),
    ):
        with pytest.raises(ValueError, match=match), hub_errors("a/b"):
            raise error


def test_variants(folder):
    """Half-precision files are taken where the network runs in half precision; a name that is asked for, where it is there."""
    assert variants_for(None, torch.float32)[0] == "" and variants_for(None, torch.float16)[:2] == ("fp16", "")
    assert variants_for(None, torch.bfloat16)[:3] == ("bf16", "fp16", "") and variants_for("ema", torch.float32)[0] == "ema"
    with pytest.raises(ValueError, match=r"The variant is '\.\./x'; give fp16"):
        variants_for("../x", torch.float32)
    full = folder / "unet" / "diffusion_pytorch_model.safetensors"
    pipelines.unet().half().save_pretrained(folder / "half", variant="fp16")
    shutil.copy(folder / "half" / "diffusion_pytorch_model.fp16.safetensors", full.parent)
    half = full.parent / "diffusion_pytorch_model.fp16.safetensors"
    for options, file in (
        ({}, full),
        ({"variant": "fp16"}, half),
        ({"dtype": "bfloat16"}, half),
        ({"variant": "", "dtype": "bfloat16"}, full),
    ):
        generator = Generator.from_pretrained(folder, **{"device": "cpu", "dtype": "float32", **options})
        assert generator.weights["unet"] == sha256(file)
    refused(folder, "has no weights of the variant 'int8'; leave variant out", variant="int8")
    full.rename(folder / "kept")  # a repository of half weights alone is opened in single precision too
    assert Generator.from_pretrained(folder, device="cpu", dtype="float32").weights["unet"] == sha256(half)
    (folder / "kept").rename(full)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    classes = read_index(folder)[1]
    fetched = {dtype: set(needed_files(names, classes, None, dtype)) for dtype in (torch.float32, torch.float16)}
    assert (
        "unet/" + half.name in fetched[torch.float16] - fetched[torch.float32]
        and "unet/" + full.name not in fetched[torch.float16]
    )


@pytest.mark.parametrize(
    ("device", "fast", "dtype"),
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", False, torch.float16),
        ("cpu", False, torch.float32),
    ],
)
def test_the_number_format_by_device(monkeypatch, device, fast, dtype):
    monkeypatch.setattr("gen.models.pretrained.fast_bfloat16", lambda device: fast)
    assert resolve_dtype(None, torch.device(device)) == dtype


def aged(*files: Path) -> None:
    """Written long ago."""
    for file in files:
        os.utime(file, (time.time() - 100, time.time() - 100))


def counted(monkeypatch) -> list[Path]:
    read: list[Path] = []
    monkeypatch.setattr(digests, "sha256", lambda path: read.append(Path(path)) or sha256(path))
    return read


def test_digests_are_remembered_by_path_size_and_time(tmp_path, monkeypatch):
    read, file = counted(monkeypatch), tmp_path / "weights"
    file.write_bytes(b"one")
    assert digests.file_digest(file) == digests.file_digest(file) == sha256(file) and len(read) == 2  # too new to be kept
    aged(file)
    first = digests.file_digest(file)
    monkeypatch.setattr(digests, "_known", None)  # another process
    assert digests.file_digest(file) == first and len(read) == 3
    file.write_bytes(b"two")
    aged(file)
    os.utime(file, (time.time() - 50, time.time() - 50))
    assert digests.file_digest(file) == sha256(file) != first and len(read) == 4
    digests.store().write_text("[1")  # a damaged store is an empty one
    monkeypatch.setattr(digests, "_known", None)
    assert digests.file_digest(file) == sha256(file) and len(read) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_own_weights_are_read_once(tmp_path, monkeypatch, dtype):
    """The digest is taken of what is read into the network."""
    read, file = counted(monkeypatch), tmp_path / "model.safetensors"
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5)).to(dtype)
    save_file(network.state_dict(), file, {"format": "pt", "note": "x"})
    aged(file)
    load_weights(network, file)
    assert digests.file_digest(file) == sha256(file) and not read


def test_a_published_network_is_read_once(tmp_path, monkeypatch):
    """The digest of a pipeline's transformer in our own network is taken as it is filled."""
    folder = pipelines.save(pipelines.dit(shared=True), tmp_path / "dit")
    aged(*folder.rglob("*.safetensors"))
    read = counted(monkeypatch)
    weights = load_model(folder).weights
    assert [path.parent.name for path in read] == ["vae"]
    assert weights["transformer"] == sha256(folder / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_pipelines_digests_are_read_once(folder, monkeypatch):
    aged(*folder.rglob("*.safetensors"))
    read = counted(monkeypatch)
    first = load_model(folder).weights
    assert len(read) == 3
    assert load_model(folder).weights == first and len(read) == 3


@pytest.mark.parametrize("way", ["in place", "data", "state dict"])
def test_prompts_are_read_again_where_the_text_weights_changed(bridged, way):
    _, shared = bridged("stable_diffusion")
    encoder = shared.text_encoder
    before = shared.encode_prompt(["a cat"]).tokens.clone()
    assert shared.encode_prompt(["a cat"]).tokens.equal(before)
    weight = encoder.reader.encoder.get_input_embeddings().weight if hasattr(encoder, "reader") else next(encoder.parameters())
    kept = {name: value.clone() for name, value in encoder.state_dict().items()}
    try:
        with torch.no_grad():
            if way == "in place":
                weight.mul_(1.5)
            elif way == "data":
                weight.data.mul_(1.5)
            else:
                encoder.load_state_dict({name: value * 1.5 for name, value in kept.items()})
        assert (shared.encode_prompt(["a cat"]).tokens - before).abs().max() > 1e-3
    finally:
        encoder.load_state_dict(kept)
    assert shared.encode_prompt(["a cat"]).tokens.equal(before)
