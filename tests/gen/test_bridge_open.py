"""Ways to open a bridged model: from the hub, in half precision, on the command line."""

from __future__ import annotations

import copy
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gen.cli import app as cli
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from tests.gen import pipelines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return pipelines.save(pipelines.stable_diffusion(), tmp_path_factory.mktemp("open") / "sd")


class Hub:
    """huggingface_hub over a folder: its own functions' signatures, and a list of what was fetched."""

    def __init__(self, source: Path, cache: Path):
        self.source, self.cache, self.fetched = source, cache, []
        self.names = [str(path.relative_to(source)) for path in sorted(source.rglob("*")) if path.is_file()]
        self.reachable = True

    def hf_hub_download(self, repository, name, revision=None):
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        if not self.reachable and not (self.cache / name).is_file():
            raise LocalEntryNotFoundError(f"no {name} in the cache")
        if not (self.source / name).is_file():
            raise EntryNotFoundError(f"404: no {name}")
        return self._fetch(name)

    def repo_info(self, repository, revision=None):
        if not self.reachable:
            raise OSError("offline")
        return SimpleNamespace(sha="1" * 40, siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, repository, revision=None, allow_patterns=("*",), local_files_only=False):
        assert revision == "1" * 40 or local_files_only  # one commit for all files
        for name in () if local_files_only else self.names:
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                self._fetch(name)
        return str(self.cache)

    def _fetch(self, name):
        self.fetched.append(name)
        (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.source / name, self.cache / name)
        return str(self.cache / name)


@pytest.fixture
def hub(folder, tmp_path, monkeypatch) -> Hub:
    import huggingface_hub

    source = Path(shutil.copytree(folder, tmp_path / "remote"))
    shutil.copy(source / "unet/diffusion_pytorch_model.safetensors", source / "unet/diffusion_pytorch_model.fp16.safetensors")
    (source / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (source / "evil.py").write_text("raise SystemExit")
    hub = Hub(source, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.hf_hub_download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


def test_from_the_hub(hub):
    generator = Generator.from_pretrained("someone/model", device="cpu", dtype="float32")
    assert generator.name == "someone/model"
    assert hub.fetched[0] == "model_index.json"
    unwanted = ("evil.py", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors")
    assert not set(unwanted) & set(hub.fetched) and "vae/diffusion_pytorch_model.safetensors" in hub.fetched
    hub.reachable = False  # what is in the cache opens without a network
    Generator.from_pretrained("someone/model", device="cpu", dtype="float32")


def test_the_hubs_index_is_checked_before_anything_else_is_fetched(hub):
    index = hub.source / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"EvilPipeline"'))
    with pytest.raises(ValueError, match=r"someone/model on the hub is not a model that fewstep can open.*EvilPipeline"):
        Generator.from_pretrained("someone/model")
    assert set(hub.fetched) == {"model_index.json"}


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "pixart", "dit", "sd3", "flux", "sana"])
def test_half_precision(bridged, name):
    """The whole chain runs in bfloat16 and gives about the same picture."""
    _, generator = bridged(name)
    subject = {"class_labels": [3]} if name == "dit" else {"prompt": "a cat", "negative_prompt": ""}
    options = {"num_inference_steps": 2, "height": 32, "width": 32, "seed": 1, "output_type": "pt", "progress": False}
    full = generator(**subject, **options).images
    parts = {"autoencoder": generator.autoencoder, "text_encoder": generator.text_encoder}
    network = copy.deepcopy(generator.network)  # it is converted in place, and other tests use the fixture's
    half = Generator(generator.config, network, **parts, device="cpu", dtype="bfloat16")
    assert half.denoiser.dtype == torch.bfloat16
    found = half(**subject, **options).images
    assert 0 < (found - full).abs().mean() < 0.05


def test_on_the_command_line(folder, tmp_path, capsys):
    picture = tmp_path / "cat.png"
    arguments = ["image", "a (red:1.2) cat", "--model", str(folder), "--steps", "2", "--seed", "4", "-o", str(picture)]
    assert (
        cli.main([*arguments, "--sampler", "DPM++ 2M Karras", "--guidance-scale", "5", "--device", "cpu", "--dtype", "float32"])
        == 0
    )
    recipe = read_recipe(picture)
    assert recipe.model.name == "sd" and recipe.prompt == "a (red:1.2) cat" and recipe.schedule == "karras"
    before = picture.read_bytes()
    again = tmp_path / "again.png"
    assert cli.main(["replay", str(picture), "--model", str(folder), "-o", str(again)]) == 0
    assert again.read_bytes() == before
    assert capsys.readouterr().err.count("Traceback") == 0
