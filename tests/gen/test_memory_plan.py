"""What a run will need in memory: sums of known sizes, every family, and the commands."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gen.cli.app import main
from gen.generator import Generator
from gen.models.memory import STEP, Alive, MemoryPlan, plan
from gen.models.options import ModelOptions
from gen.nn.quantized import stored_bytes
from tests.gen import more_pipelines, pipelines, pipelines_chat
from tests.gen import test_single_file as single

FAMILIES = {
    "stable_diffusion": pipelines, "sdxl": pipelines, "pixart": pipelines, "dit": pipelines, "sd3": pipelines,
    "flux": pipelines, "sana": pipelines, "qwen_image": pipelines_chat, "z_image": pipelines_chat, "chroma": more_pipelines,
}  # fmt: skip


def test_what_is_alive_is_added_up():
    """Tensors that are held, not views of them, and no more once they are let go of."""
    with FakeTensorMode(), Alive() as alive:
        first = torch.ones(1000)
        view = first.view(10, 100).T
        assert alive.now == 4000
        second = first + 1
        del first, view
        assert alive.now == 4000
        third = second.double()
        del second, third
    assert alive.now == 0 and alive.peak == 4000 + 8000


def test_a_network_of_known_activations():
    """Two linear layers: the input, the first output and the second are held at once at the most."""
    with FakeTensorMode(), torch.no_grad():
        network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
        x = torch.zeros(8, 64)
        with Alive() as alive:
            network(x)
    assert alive.peak == 4 * 8 * (256 + 256)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(tmp_path, name):
    """Weights are those of the opened model, to the byte; more rows and larger pictures need more."""
    folder = pipelines.save(getattr(FAMILIES[name], name)(), tmp_path / name)
    planned = plan(folder, height=32, width=32)
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32", native=False)
    expected = {"denoiser": generator.network, "autoencoder": generator.autoencoder}
    expected |= getattr(generator.text_encoder, "encoders", {}) if generator.text_encoder is not None else {}
    assert planned.weights == {part: stored_bytes(network) for part, network in expected.items()}
    more = plan(folder, height=64, width=64, batch=2)
    assert more.rows == 2 * planned.rows
    assert all(more.working[stage] > 2 * planned.working[stage] for stage in planned.working)


def test_of_one_file_and_in_fewer_bits(tmp_path):
    """From headers alone: the tensors of the file are no numbers."""
    _, file, folder = single.written(tmp_path, single.flux())
    options = {"text_encoder": folder, "vae": folder}
    generator = Generator.from_pretrained(file, device="cpu", dtype="bfloat16", quantize="nf4", **options)
    cuda, asked = torch.device("cuda"), ModelOptions(quantize="nf4", **options)
    planned = plan(file, torch.bfloat16, cuda, height=32, width=32, options=asked)
    assert planned.weights["denoiser"] == stored_bytes(generator.network)
    plain = plan(folder, torch.bfloat16, cuda, height=32, width=32)
    assert planned.weights["denoiser"] < plain.weights["denoiser"] / 2


def test_under_offloading():
    """One part at a time; of the denoiser one block."""
    weights = {"denoiser": 100, "text_encoder": 60, "autoencoder": 30}
    planned = MemoryPlan("x", 8, 8, 1, weights, {"step": 10, "decoding": 50}, 20, True)
    assert planned.peak() == (240, "decoding")
    assert planned.peak("model") == (110, STEP)
    assert planned.peak("group") == (80, "decoding")
    assert planned.peak("sequential") == (80, "decoding")


def test_the_default_model():
    planned = plan("default")
    generator = Generator.from_pretrained(device="cpu", dtype="float32")
    assert planned.weights["denoiser"] == stored_bytes(generator.network)
    assert not any("group" in line for line in planned.lines())  # our own networks move whole


def test_decoding_in_tiles_needs_less(tmp_path):
    folder = pipelines.save(pipelines.stable_diffusion(), tmp_path / "sd")
    whole, tiled = (plan(folder, height=256, width=256, vae_tile=tile).working["decoding"] for tile in (None, 64))
    assert tiled < whole / 2


def test_commands(capsys, tmp_path):
    """`info MODEL`, and `image --plan`, which makes nothing."""
    assert main(["info", "default", "--dtype", "float32", "--height", "64", "--width", "64"]) == 0
    assert "at the most" in capsys.readouterr().out
    assert main(["info", "upscale", "--dtype", "float32"]) == 0  # which reads a picture beside the noise
    assert "at the most" in capsys.readouterr().out
    assert main(["image", "a cat", "-n", "3", "--plan", "--no-fast", "-o", str(tmp_path / "x"), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "6 rows of 128 x 128 pixels" in said and "not counted" not in said and not list(tmp_path.iterdir())
    assert (
        main(["image", "a cat", "--plan", "--no-fast", "--guidance-scale", "1", "--lora", "a.safetensors", "--device", "cpu"])
        == 0
    )
    said = capsys.readouterr().out
    assert ", 1 row of 128" in said and "not counted: what --lora may add" in said
