"""Tiny models with random weights: every kind of model folder, small enough to run in milliseconds."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from gen.generator import Generator
from gen.models.folder import write_model
from gen.nn.backbones import editing
from gen.nn.registry import build

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "red",
    "blue",
    "heart",
    "cat",
    "dog",
    "on",
    "the",
    "moon",
    "blurry",
    "##s",
    "!",
]
DEFAULTS = {"num_inference_steps": 4, "guidance_scale": 3.0, "sampler": "dpmpp_2m", "schedule": "uniform"}
CONFIG = {"path": {"type": "rectified_flow"}, "prediction": "x0", "clock": "1000t", "sample_size": 32, "defaults": DEFAULTS}
UVIT = {"type": "uvit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2}


def randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights that make every input matter: an untrained network with zeroed branches would pass too much."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return network


def tiny_text_encoder():
    encoder = randomise(
        build({"type": "text_encoder", "vocab_size": 16, "dim": 16, "layers": 1, "heads": 2, "hidden": 32, "max_tokens": 8}), 3
    )
    encoder.set_vocabulary(WORDS)
    return encoder


def tiny_autoencoder():
    sizes = {
        "factor": 4,
        "channels": 4,
        "encoder_widths": [8],
        "encoder_blocks": [1],
        "decoder_widths": [8],
        "decoder_blocks": [1],
    }
    return randomise(build({"type": "autoencoder", **sizes, "refine_width": 4}), 2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Text to pictures through latents, 32 pixels."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    network = randomise(build({**UVIT, "text_tokens": 8, "text_dim": 16}), 1)
    return write_model(folder, CONFIG, network, tiny_autoencoder(), tiny_text_encoder())


@pytest.fixture(scope="session")
def class_model(tmp_path_factory) -> Path:
    """Three named classes, pixels, a variance-preserving path and eps prediction."""
    folder = tmp_path_factory.mktemp("models") / "classes"
    config = {
        "path": {"type": "variance_preserving", "betas": "scaled_linear"},
        "prediction": "eps",
        "clock": "index",
        "sample_size": 8,
        "defaults": {**DEFAULTS, "sampler": "ddim", "schedule": "trailing"},
        "classes": ["cat", "dog", "goldfish"],
    }
    network = randomise(build({**UVIT, "channels": 3, "num_classes": 3}), 4)
    return write_model(folder, config, network)


@pytest.fixture(scope="session")
def pixel_model(tmp_path_factory) -> Path:
    """Unconditional pixels."""
    folder = tmp_path_factory.mktemp("models") / "pixels"
    config = {**CONFIG, "sample_size": 8, "defaults": {"num_inference_steps": 3, "sampler": "euler", "schedule": "uniform"}}
    return write_model(folder, config, randomise(build({**UVIT, "channels": 3}), 5))


@pytest.fixture(scope="session")
def tiny(tiny_model) -> Generator:
    return Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")


SMALL = ((24, 40), (32, 32), (40, 24))  # width and height, in the place of Kontext's own


@pytest.fixture
def small(monkeypatch):
    """Kontext with sizes of pictures that a test can afford, in diffusers and here."""
    from diffusers.pipelines.flux import pipeline_flux_kontext, pipeline_flux_kontext_inpaint

    for module in (pipeline_flux_kontext, pipeline_flux_kontext_inpaint):
        monkeypatch.setattr(module, "PREFERRED_KONTEXT_RESOLUTIONS", list(SMALL))
    monkeypatch.setattr(editing, "SIZES", SMALL)


@pytest.fixture
def smaller(monkeypatch):
    """Qwen's editors with a 256th of the pixels that they read, in diffusers and here."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
        original = module.calculate_dimensions
        monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio, f=original: f(area // 256, ratio))
    monkeypatch.setattr(editing, "AREA", editing.AREA // 256)

    def shrink(generator):
        reader = generator.text_encoder
        monkeypatch.setattr(reader, "chat", replace(reader.chat, area=reader.chat.area // 256))

    return shrink


@pytest.fixture
def fewstep(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    from gen.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = app.main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return run


@pytest.fixture
def image(fewstep, tiny_model):
    """`fewstep image` with the tiny model."""
    return lambda *arguments: fewstep("image", *arguments, "--model", tiny_model, "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="session")
def bridged(tmp_path_factory):
    """name, options -> (a diffusers pipeline of `tests.gen.pipelines` and the like, our generator of its saved folder), made
    once each; with diffusers' network unless native says otherwise."""
    from tests.gen import more_pipelines, pipelines, pipelines_chat

    @cache
    def open_one(name: str, native: bool | None = False, **options):
        module = next(one for one in (pipelines, more_pipelines, pipelines_chat) if hasattr(one, name))
        pipeline = getattr(module, name)(**options)
        pipeline.set_progress_bar_config(disable=True)
        folder = pipelines.save(pipeline, tmp_path_factory.mktemp("pipelines") / name)
        if name == "dit":  # save_pretrained leaves the names of the classes out; published folders have them
            index = json.loads((folder / "model_index.json").read_text())
            index["id2label"] = {str(i): f"thing {i}, other {i}" for i in range(1000)}
            (folder / "model_index.json").write_text(json.dumps(index))
        return pipeline, Generator.from_pretrained(folder, device="cpu", dtype="float32", native=native)

    return open_one
