"""Offloading: the same pictures, what moves when, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gen.adapters import Adapter, Delta
from gen.generator import Generator
from gen.models import offload
from gen.models.offload import KINDS, Residency
from tests.gen import test_single_file as single
from tests.gen.test_bridge_parity import noise, ours

CALL = {"prompt": "a red heart", "num_inference_steps": 2, "output_type": "pt", "progress": False, "seed": 1}
pytestmark = pytest.mark.filterwarnings("ignore:The model runs on a CPU:UserWarning")


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """(folder, latents, its picture without offloading)."""
    _, _, folder = single.written(tmp_path_factory.mktemp("flux"), single.flux())
    generator = Generator.from_pretrained(folder, dtype="float32", device="cpu")
    x = noise(generator, 1)
    return folder, x, ours("flux", generator, x, 3.5)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_stay_the_same(flux, kind):
    """With the hooks of accelerate and diffusers under our denoiser; weights are elsewhere between calls."""
    folder, x, expected = flux
    generator = Generator.from_pretrained(folder, dtype="float32", device="cpu", offload=kind)
    found = ours("flux", generator, x, 3.5)
    torch.testing.assert_close(found, expected, atol=1e-5 if kind == "disk" else 0, rtol=0)
    block = next(generator.network.network.transformer_blocks[0].parameters())
    assert block.is_meta == (kind == "sequential")
    if kind == "disk":
        assert len(list(Path(offload._kept[-1].name).glob("*.safetensors"))) == 4  # three blocks, and what is no block
    assert generator.residency.moves == {"model": 3, "group": 2, "disk": 2, "sequential": 1}[kind]


def test_our_own_models_move_whole():
    plain = Generator.from_pretrained(device="cpu", dtype="float32")(**CALL).images
    generator = Generator.from_pretrained(device="cpu", dtype="float32", offload="model")
    assert torch.equal(generator(**CALL).images, plain)
    moves = generator.residency.moves
    generator(**CALL)
    assert generator.residency.moves == moves + 2  # the prompt is known, so the denoiser and the autoencoder
    with pytest.raises(ValueError, match=r"Our own networks move whole: give offload='model', not 'group'"):
        Generator.from_pretrained(device="cpu", offload="group")


def test_one_part_is_on_the_device_at_a_time():
    """Told by where the others go: to the CPU before the next part comes."""

    class Part(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def to(self, device):
            log.append((self.name, str(device)))
            return self

        def encode(self, value):
            return value + 1

        def forward(self, value):
            return value

    log: list[tuple[str, str]] = []
    residency, network, autoencoder = Residency(torch.device("cuda")), Part("denoiser"), Part("autoencoder")
    residency.add("denoiser", network)
    residency.add("autoencoder", autoencoder, ("encode",))
    assert autoencoder.encode(1) == 2 and network(1) == 1 and network(2) == 2
    assert log == [("denoiser", "cpu"), ("autoencoder", "cuda"), ("autoencoder", "cpu"), ("denoiser", "cuda")]


def lora(kind: str) -> Adapter:
    draw = torch.Generator().manual_seed(0)
    factors = {"down": torch.randn(2, 128, generator=draw) * 0.1, "up": torch.randn(128, 2, generator=draw) * 0.1}
    if kind == "dora":
        factors["magnitude"] = torch.ones(128)
    return Adapter(kind, {"denoiser.transformer_blocks.0.attn.to_q": Delta(factors, 1.0)})


@pytest.mark.parametrize("kind", ["group", "sequential"])
def test_adapters_beside_offloaded_weights(flux, kind):
    folder, x, plain = flux
    pictures = []
    for where in (None, kind):
        generator = Generator.from_pretrained(folder, dtype="float32", device="cpu", offload=where)
        generator.load_adapter(lora("lora"))
        pictures.append(ours("flux", generator, x, 3.5))
    assert torch.equal(*pictures) and not torch.equal(pictures[0], plain)
    if kind == "sequential":
        with pytest.raises(ValueError, match=r"needs the weights it acts on, which are offloaded; open with offload='model'"):
            generator.load_adapter(lora("dora"))


def test_what_does_not_go_together(flux):
    folder, x, _ = flux
    with pytest.raises(ValueError, match="offload is 'gpu'; give one of 'model', 'group', 'sequential', 'disk'"):
        Generator.from_pretrained(folder, device="cpu", offload="gpu")
    with pytest.raises(ValueError, match=r"Weights in fewer bits are moved whole: use offload='model' with quantize"):
        Generator.from_pretrained(folder, device="cpu", quantize="int8", offload="group")
    both = Generator.from_pretrained(folder, dtype="float32", device="cpu", quantize="int8", offload="model")
    alone = Generator.from_pretrained(folder, dtype="float32", device="cpu", quantize="int8")
    assert torch.equal(ours("flux", both, x, 3.5), ours("flux", alone, x, 3.5))


def test_on_a_cpu_it_says_that_nothing_is_saved(flux):
    with pytest.warns(UserWarning, match="where offload='model' saves no memory; disk does, or quantize"):
        Generator.from_pretrained(flux[0], device="cpu", offload="model")
