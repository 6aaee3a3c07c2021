"""What is saved opens again and makes the same pictures, here and in diffusers; nothing is replaced unless told."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gen.generator import Generator
from gen.io import folders
from samplers.registry import get_grid
from tests.gen import published
from tests.gen.test_bridge_parity import CLOSE, noise, theirs
from tests.gen.test_native import ON_CPU, parts, write  # noqa: F401 (parts is a fixture)

QUICK = {"num_inference_steps": 2, "seed": 3, "height": 32, "width": 32, "output_type": "pt", "progress": False}


def call(generator: Generator, **options):
    subject = {"class_labels": [7]} if generator.classes else {"prompt": "a cat"}
    return generator(**subject, **QUICK | options).images


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "pixart", "dit", "sd3", "flux", "sana", "flux_kontext", "kolors"])
def test_a_bridged_model_is_saved_as_the_pipeline_it_was(bridged, tmp_path, name):
    """Every file of weights the same, and the same pictures from diffusers and from us."""
    import diffusers

    pipeline, generator = bridged(name)
    folder = generator.save_pretrained(tmp_path / "copy")
    again = Generator.from_pretrained(folder, native=False, **ON_CPU)
    assert torch.equal(call(again), call(generator)) and again.weights == generator.weights
    assert again.config == generator.config
    copy = diffusers.DiffusionPipeline.from_pretrained(folder)
    assert type(copy) is type(pipeline)
    if name in ("stable_diffusion", "pixart"):
        copy.set_progress_bar_config(disable=True)
        x = noise(generator, 1)
        torch.testing.assert_close(theirs(name, copy, x, 3.0), theirs(name, pipeline, x, 3.0), atol=1e-6, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@pytest.mark.parametrize("name", ["pixart", "dit"])
def test_a_native_network_goes_back_to_diffusers(bridged, tmp_path, name):
    import diffusers

    pipeline, generator = bridged(name, native=True, **({"shared": True} if name == "dit" else {}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.showwarning", lambda *a, **k: pytest.fail(str(a[0])))
        folder = generator.save_pretrained(tmp_path / "pipeline", format="diffusers")
    copy = diffusers.DiffusionPipeline.from_pretrained(folder)
    copy.set_progress_bar_config(disable=True)
    x = noise(generator, 1)
    torch.testing.assert_close(theirs(name, copy, x, 3.0), theirs(name, pipeline, x, 3.0), **CLOSE)
    own = generator.save_pretrained(tmp_path / "own")
    assert json.loads((own / "config.json").read_text())["format"] == "fewstep"
    again = Generator.from_pretrained(own, **ON_CPU)
    torch.testing.assert_close(call(again), call(generator), **CLOSE)
    # written again, ours holds the same weights
    assert Generator.from_pretrained(again.save_pretrained(tmp_path / "twice"), **ON_CPU).weights == again.weights
    half = generator.save_pretrained(tmp_path / "half", torch.float16)
    part = "text_encoder/text_encoder/model" if name == "pixart" else "autoencoder/vae/diffusion_pytorch_model"
    for file in ("denoiser/model", part):
        assert {v.dtype for v in load_file(half / f"{file}.safetensors").values()} == {torch.float16}
    if name == "pixart":
        opened = Generator.from_pretrained(half, device="cpu", dtype="bfloat16")
        assert {p.dtype for p in opened.text_encoder.parameters()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:This network has freq_shift")
def test_a_checkpoint_with_its_parts_is_saved_every_way(tmp_path, parts):  # noqa: F811
    import diffusers

    path = write(tmp_path / "dit.safetensors", published.dit(dim=24, depth=2, size=16), positions=published.sincos(16, 2, 24))
    generator = Generator.from_pretrained(path, vae=parts / "vae", model_options={"heads": 2, "latent_scale": 0.3}, **ON_CPU)
    own = Generator.from_pretrained(generator.save_pretrained(tmp_path / "own"), **ON_CPU)
    torch.testing.assert_close(call(own), call(generator), **CLOSE)
    same = generator.save_pretrained(tmp_path / "again.safetensors", format="dit")
    before, after = load_file(path), load_file(same)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    folder = generator.save_pretrained(tmp_path / "pipeline", format="diffusers")
    copy = diffusers.DiTPipeline.from_pretrained(folder)
    assert copy.vae.config.scaling_factor == 0.3 and copy.labels["goldfish"] == 1
    reopened = Generator.from_pretrained(folder, **ON_CPU)
    assert reopened.config.path == generator.config.path and reopened.config.defaults.sampler == "dpmpp_2m"
    path, defaults = reopened.denoiser.path, reopened.config.defaults  # diffusers keeps to whole timesteps of the same grid
    kept = get_grid(defaults.schedule, path, 20, **defaults.schedule_options)
    for a, b in zip(kept, get_grid(generator.config.defaults.schedule, path, 20), strict=True):
        assert abs(a.t - b.t) <= 0.5001 / 1000
    z = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(reopened.decode(z), generator.decode(z))


def test_text_uvit_has_a_folder_and_a_file_of_its_own(tmp_path, parts):  # noqa: F811
    path = write(tmp_path / "coco.safetensors", published.uvit(dim=16, depth=2, size=16, text=True, clip=16))
    given = {"vae": parts / "vae", "text_encoder": parts / "clip", "model_options": {"heads": 2}}
    generator = Generator.from_pretrained(path, **given, **ON_CPU)
    again = Generator.from_pretrained(generator.save_pretrained(tmp_path / "own"), **ON_CPU)
    torch.testing.assert_close(call(again), call(generator), **CLOSE)
    z = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(again.decode(z), generator.decode(z))
    with pytest.raises(ValueError, match="diffusers has no pipeline for the model 'coco'"):
        generator.save_pretrained(tmp_path / "pipeline", format="diffusers")
    assert not (tmp_path / "pipeline").exists()


def test_nothing_is_overwritten_silently(bridged, tiny, tmp_path):
    _, generator = bridged("dit")
    folder = generator.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model already; choose another folder, or pass overwrite=True"):
        generator.save_pretrained(folder)
    with pytest.raises(ValueError, match="holds a model already"):
        tiny.save_pretrained(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"also holds 'notes\.txt'"):
        generator.save_pretrained(folder, overwrite=True)
    (folder / "notes.txt").unlink()
    tiny.save_pretrained(folder, overwrite=True)
    assert (folder / "denoiser").is_dir() and not (folder / "transformer").exists()
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"mine")
    with pytest.raises(ValueError, match="exists already; choose another name"):
        tiny.save_pretrained(file, format="uvit")
    assert file.read_bytes() == b"mine"


def test_a_failed_save_leaves_nothing(bridged, tmp_path, monkeypatch):
    _, generator = bridged("dit")
    folder = generator.save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(
        "gen.models.saving.write_json", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    for place in ("model", "other"):
        with pytest.raises(OSError, match="No space"):
            generator.save_pretrained(tmp_path / place, overwrite=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("flux", "fewstep", 'runs in diffusers\' network.*save it with format="diffusers"'),
        ("dit", "dit", "of our own networks; the model 'dit' runs in diffusers'"),
        ("dit", "ditt", "Unknown format 'ditt'; did you mean 'dit'"),
    ],
)
def test_what_a_format_cannot_hold(bridged, tmp_path, name, format, message):
    with pytest.raises(ValueError, match=message):
        bridged(name)[1].save_pretrained(tmp_path / "x", format=format)
    assert list(tmp_path.iterdir()) == []


def test_the_default_kind_of_model_is_no_pipeline(tiny, tmp_path):
    with pytest.raises(ValueError, match="diffusers has no pipeline for the model 'tiny'"):
        tiny.save_pretrained(tmp_path / "x", format="diffusers")


@pytest.mark.parametrize("name", ["tiny", "pixart", "dit"])
def test_the_card(request, bridged, tmp_path, name):
    generator = request.getfixturevalue("tiny") if name == "tiny" else bridged(name)[1]
    card = (generator.save_pretrained(tmp_path / "my-model") / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] is None and head["library_name"] == ("fewstep" if name == "tiny" else "diffusers")
    assert head["pipeline_tag"] == ("unconditional-image-generation" if name == "dit" else "text-to-image")
    kind = {"tiny": "UViT", "pixart": "PixArtTransformer2DModel", "dit": "DiTTransformer2DModel"}[name]
    millions = sum(p.numel() for p in generator.network.parameters()) / 1e6
    assert f"| denoiser | {kind} | {millions:.1f} M |" in text and "# my-model\n" in text
    assert ("| text encoder | T5EncoderModel |" in text) == (name == "pixart")
    assert f"`{generator.config.defaults.sampler}`" in text and 'from_pretrained("my-model")' in text
    assert str(tmp_path) not in card
    if name == "tiny":  # the lines that load it run
        code = text.split("```python\n")[1].split("```")[0].replace('"my-model"', repr(str(tmp_path / "my-model")))
        exec(code.replace('"picture.png"', repr(str(tmp_path / "picture.png"))), {})
        assert (tmp_path / "picture.png").is_file()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of half a megabyte, of which 40 KB are left."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted")
    (place / "filler").write_bytes(b"x" * 472_000)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("format", ["diffusers", "fewstep", "diffusers-pixart"])
def test_a_full_disk_is_one_error_and_leaves_nothing(bridged, small_disk, format):
    _, generator = bridged("pixart", native=True)
    with pytest.raises(OSError, match="No space left on device"):
        generator.save_pretrained(small_disk / "model", format=format)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_full_disk_leaves_the_model_that_was_there(bridged, small_disk):
    _, generator = bridged("pixart", native=True)
    (small_disk / "model").mkdir()
    (small_disk / "model" / "model_index.json").write_text("{}")
    with pytest.raises(OSError, match="No space left on device"):
        generator.save_pretrained(small_disk / "model", format="diffusers", overwrite=True)
    assert (small_disk / "model" / "model_index.json").read_text() == "{}"
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "model"]


def test_a_model_that_a_crash_moved_aside_is_opened(bridged, tmp_path, monkeypatch):
    """Where a folder can only be replaced by two renames, and the second never came."""
    _, generator = bridged("dit", native=True, shared=True)
    folder = generator.save_pretrained(tmp_path / "model", format="fewstep")
    before = call(Generator.from_pretrained(folder, **ON_CPU))
    monkeypatch.setattr(folders, "_exchange", lambda a, b: False)
    real = os.rename

    def rename(a, b):
        if Path(b) == folder:
            raise KeyboardInterrupt
        real(a, b)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", rename)
        generator.save_pretrained(folder, format="fewstep", overwrite=True)
    assert not folder.exists()
    assert torch.equal(call(Generator.from_pretrained(folder, **ON_CPU)), before)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
