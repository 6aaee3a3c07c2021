"""`python -m distill.train` as a user runs it: a YAML file in, a model folder out that `Generator` opens."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess

import pytest
import torch
import yaml
from PIL import Image

from distill.cache import main as fill
from distill.data.__main__ import main as check
from distill.data.emoji.archive import DrawingRecord, write_archive
from distill.data.emoji.data import EmojiConfig
from distill.data.emoji_latents import EmojiLatents, EmojiLatentsConfig
from distill.objectives import make_objective
from distill.optim.precision import autocast
from distill.train import main
from distill.types import Batch
from gen.generator import Generator
from gen.models.components import load_component, save_component
from gen.nn.registry import build
from samplers import ClassifierFree, get_grid, get_solver, normal, sample
from tests.gen.conftest import UVIT, tiny_autoencoder, tiny_text_encoder

COLOURS = {"red heart": (220, 30, 30), "blue book": (30, 60, 220), "green apple": (40, 160, 60)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with three pictures of 32 pixels and the frozen parts of a small model."""
    folder = tmp_path_factory.mktemp("workspace")
    records, pictures = [], {}
    for number, (label, colour) in enumerate(COLOURS.items()):
        name = f"images/fake/1F60{number}.webp"
        picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        picture.paste((*colour, 255), (8, 8, 24, 24))
        file = io.BytesIO()
        picture.save(file, "WEBP", lossless=True)
        pictures[name] = file.getvalue()
        known = {"group": "objects", "subgroup": "other", "names": (), "tags": (), "keywords": (), "licence": "MIT"}
        records.append(
            DrawingRecord(file_name=name, pack="fake", family="train", style="fake", hex=f"1F60{number}", label=label, **known)
        )
    write_archive(folder / "tiny.zip", records, pictures, list(COLOURS))
    save_component(tiny_autoencoder(), folder / "autoencoder")
    save_component(tiny_text_encoder(), folder / "text_encoder")
    return folder


def cache(workspace, variants=3, **emoji) -> EmojiLatents:
    settings = EmojiConfig(archives=(str(workspace / "tiny.zip"),), size=32, **emoji)
    config = EmojiLatentsConfig(
        emoji=settings, autoencoder=workspace / "autoencoder", variants=variants, folder=workspace / "latents"
    )
    return EmojiLatents(config, seed=0)


def test_cached_latents_are_those_of_the_pictures(workspace):
    latents = cache(workspace)
    autoencoder = load_component(workspace / "autoencoder")
    pictures = latents.emoji.batch(range(12))
    cached = latents.batch(range(12))
    assert cached.captions == pictures.captions and torch.equal(cached.labels, pictures.labels)
    with torch.no_grad():
        expected = autoencoder.encode(pictures.images)
    torch.testing.assert_close(cached.latents, expected, atol=0.05, rtol=0.05)  # made and kept in bfloat16
    assert not torch.allclose(cached.latents, expected.flip(0), atol=0.05, rtol=0.05)


def test_a_cache_is_used_again_only_for_the_same_latents(workspace):
    first = cache(workspace)
    written = first.path.stat().st_mtime_ns
    assert cache(workspace).path == first.path and first.path.stat().st_mtime_ns == written
    assert cache(workspace, variants=2).path != first.path
    assert cache(workspace, background=0.9).path != first.path
    first.path.unlink()  # the tensor of `first` is mapped from the old file
    first.path.write_bytes(b"damaged")
    assert torch.equal(cache(workspace).all, first.all)


def test_the_name_of_a_cached_file_stays_what_it_is(workspace):
    """Folders of latents outlive versions: sha256 of what they depend on, as text, then of every n-th picture, as numbers."""
    latents = cache(workspace)
    weights = hashlib.sha256((workspace / "autoencoder" / "model.safetensors").read_bytes()).hexdigest()
    settings = json.loads((workspace / "autoencoder" / "config.json").read_text())
    told = repr(sorted((key, repr(value)) for key, value in settings.items()))
    archive = hashlib.sha256((workspace / "tiny.zip").read_bytes()).hexdigest()
    digests = (hashlib.sha256(f"{weights} {told}".encode()).hexdigest(), [archive])
    variants = [latents.emoji.variant(index, k) for index in range(3) for k in range(3)]
    assert repr(variants[0]) == "Variant(index=0, color=None, background=None)"
    key = hashlib.sha256(repr((*digests, 32, variants)).encode() + latents.emoji.render(variants).numpy().tobytes())
    assert latents.path == workspace / "latents" / f"{key.hexdigest()[:16]}.safetensors"
    assert latents.fill() in (0, 3) and cache(workspace).fill() == 0


def config(workspace, **changes) -> dict:
    return {
        "output": str(workspace / "run"),
        "max_steps": 4,
        "batch_size": 4,
        "device": "cpu",
        "log_every": 2,
        "checkpoint_every": 2,
        "preview_every": 4,
        "network": {**UVIT, "text_tokens": 8, "text_dim": 16},
        "objective": {
            "type": "diffusion",
            "prediction": "x0",
            "loss": "flow",
            "autoencoder": str(workspace / "autoencoder"),
            "text_encoder": str(workspace / "text_encoder"),
            "preview": {"prompts": ["a red heart", "a cat"], "num_inference_steps": 2},
            "defaults": {"num_inference_steps": 3, "guidance_scale": 2.0},
        },
        "data": {
            "type": "emoji_latents",
            "emoji": {"archives": [str(workspace / "tiny.zip")], "size": 32},
            "autoencoder": str(workspace / "autoencoder"),
            "variants": 2,
            "folder": str(workspace / "latents"),
        },
        **changes,
    }


@pytest.fixture
def run(workspace, tmp_path):
    def run(*overrides, **changes) -> int:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config(workspace, output=str(tmp_path / "run"), **changes)))
        return main([str(path), *overrides])

    return run


def test_a_run_ends_in_a_model_that_opens(run, tmp_path):
    assert run() == 0
    generator = Generator.from_pretrained(tmp_path / "run" / "export", device="cpu", dtype="float32")
    output = generator("a red heart", seed=1, progress=False)
    assert output.images[0].size == (32, 32) and output.recipes[0].num_inference_steps == 3
    sheet = Image.open(tmp_path / "run" / "samples" / "00000004.png")
    assert sheet.width == 2 * 32 + 3 * 8 and sheet.height > 32 + 2 * 8  # the gaps of a sheet, and captions below


def test_what_can_be_used_is_written_on_the_way(run, tmp_path):
    """An export that opens every two steps, a sheet beside each and one before the first step, the loss of what is held out."""
    assert run("export_every=2", "preview_every=0", "validation={every: 2, share: 0.4, batches: 1}") == 0
    root = tmp_path / "run"
    assert sorted(p.name for p in (root / "samples").iterdir()) == ["00000000.png", "00000002.png", "00000004.png"]
    assert [p.name for p in (root / "exports").iterdir()] == ["step-00000002"]
    halfway, end = (Generator.from_pretrained(root / p, "cpu", "float32") for p in ("exports/step-00000002", "export"))
    a, b = (g("a red heart", seed=1, progress=False, output_type="pt").images for g in (halfway, end))
    assert a.shape == b.shape and not torch.equal(a, b)
    rows = [json.loads(line) for line in (root / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("validation/loss", 0) > 0] == [2, 4]
    before = Image.open(root / "samples" / "00000000.png").tobytes()
    assert before != Image.open(root / "samples" / "00000002.png").tobytes()


def test_previews_are_drawn_by_what_the_export_records(workspace):
    torch.manual_seed(0)
    told = {"num_inference_steps": 5, "guidance_scale": 2.5, "sampler": "heun", "schedule": "beta"}
    settings = {"type": "diffusion", "prediction": "x0", "defaults": told, "text_encoder": str(workspace / "text_encoder")}
    network = build({**UVIT, "text_tokens": 8, "text_dim": 16})
    objective = make_objective({**settings, "autoencoder": str(workspace / "autoencoder")}, network, None)
    batch = Batch(index=torch.arange(1), captions=["a red heart"], latents=torch.zeros(1, 4, 8, 8))
    with torch.no_grad():
        pictures, prompts = objective.preview({"denoiser": network}, batch, 3)
    assert prompts == ("a red heart",)
    noise, condition = normal([3], (4, 8, 8)), objective.condition(batch, torch.device("cpu"))
    levels = get_grid("beta", objective.path, 5)
    with torch.no_grad(), autocast(torch.device("cpu")):
        guided = ClassifierFree(objective.denoiser(network), 2.5)
        expected = objective.render(sample(guided, get_solver("heun"), noise * levels[0].sigma, levels, condition))
    assert torch.equal(pictures, expected)


def test_pictures_without_a_cache_train_too(run, workspace):
    data = {"type": "emoji", "archives": [str(workspace / "tiny.zip")], "size": 32}
    assert run(data=data) == 0


def test_a_dry_run_writes_nothing(run, tmp_path, capsys):
    assert run("--dry-run") == 0
    assert "denoiser: 0." in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_options_stand_in_any_order(workspace, tmp_path, capsys):
    """Before the config, after it, with flags between."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(workspace, output=str(tmp_path / "run"))))
    shown = []
    for words in (["seed=3", str(path), "max_steps=7"], ["seed=3", "--dry-run", "max_steps=7", str(path)]):
        assert main([*words, "--dry-run"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and '"seed": 3' in shown[0] and '"max_steps": 7' in shown[0]
    for command in (main, fill, check):
        assert command([*(["check"] if command is check else []), "seed=3", "max_steps=7"]) == 2
        assert "say which config they change" in capsys.readouterr().err
    assert check(["check", "seed=3", str(path)]) == 0 and fill(["seed=3", str(path)]) == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_step=3", "did you mean 'max_steps'"),
        ("network.dim=33", "dim 33"),
        ("network.type=unet", "Unknown network type 'unet'"),
        ("objective.type=difusion", "did you mean 'diffusion'"),
        ("objective.prediction=noise", "prediction"),
        ("objective.clock=seconds", "clock"),
        ("data.type=emojis", "did you mean 'emoji'"),
        ("objective.text_encoder=absent", "absent"),
        ("output=/proc/none", "cannot be written"),
        ("device=cuda", "no CUDA"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(run, capsys, override, message):
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert run(override) in (1, 2)
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("fewstep: ")]) == 1
    assert message in said[-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.size=16"], r"of role 'denoiser' is of size 16.*8x8 latents of 32x32 pictures: set the data's size to 64"),
        (["network.channels=3"], r"takes 3 channels .*latents have 4; set it to 4"),
        (["network.text_dim=24"], r"network.text_dim is 24, and the text encoder's features are 16 wide"),
        (["network.text_tokens=4"], r"network.text_tokens is 4, and the text encoder gives 8 tokens"),
        (["objective.text_encoder=null"], r"there is no text encoder, so it would train without reading a word"),
        (["network.text_dim=0", "network.text_tokens=0"], r"There is a text encoder, and the network reads no text"),
        (
            ["objective.text_encoder=null", "network.text_dim=0", "network.text_tokens=0", "network.num_classes=2"],
            r"have the label 2, and the network knows 0 to 1",
        ),
        (["data.autoencoder=OTHER"], r"whose weights are not objective\.autoencoder"),
        (["init_from=WEIGHTS", "network.depth=3"], r"The section network and the network in init_from"),
    ],
)
def test_parts_that_disagree_are_refused_before_training(run, tmp_path, capsys, overrides, message):
    """Also under --dry-run, and with nothing written."""
    save_component(tiny_autoencoder(), tmp_path / "other")
    save_component(build({**UVIT, "text_tokens": 8, "text_dim": 16}), tmp_path / "weights")
    places = {"OTHER": str(tmp_path / "other"), "WEIGHTS": str(tmp_path / "weights")}
    told = [override.replace("OTHER", places["OTHER"]).replace("WEIGHTS", places["WEIGHTS"]) for override in overrides]
    for arguments in ([*told, "--dry-run"], told):
        assert run(*arguments) == 2
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_what_agrees_is_let_through(run, tmp_path):
    save_component(build({**UVIT, "text_tokens": 8, "text_dim": 16}), tmp_path / "weights")
    assert run("--dry-run", f"init_from={tmp_path / 'weights'}") == 0


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(run, workspace, tmp_path, capsys):
    """A file system on which a checkpoint has room and the export has not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted")
    try:
        assert run(f"output={disk / 'whole'}") == 0
        size = sum(p.stat().st_size for p in (disk / "whole" / "export").rglob("*") if p.is_file())
        shutil.rmtree(disk / "whole" / "export")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "filler").write_bytes(b"x" * (free - size // 2))
        capsys.readouterr()
        assert run(f"output={disk / 'whole'}") == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep: ")]
        assert len(said) == 1 and "No space left on device; make room" in said[0]
        left = {p.name for p in (disk / "whole").iterdir()}
        assert "lock" not in left and "export" not in left and not [name for name in left if name.endswith(".tmp")]
        (disk / "filler").unlink()
        assert run(f"output={disk / 'whole'}") == 0 and (disk / "whole" / "export" / "config.json").is_file()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_wrong_objective_is_said_before_the_data_is_made(run, capsys, monkeypatch):
    monkeypatch.setattr("distill.data.make_source", lambda *_: pytest.fail("the data was made"))
    assert run("objective.predictoin=x0") == 2
    assert "predictoin" in capsys.readouterr().err
