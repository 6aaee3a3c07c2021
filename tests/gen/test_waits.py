"""No step of a call waits for the device, and nothing on it has 64 bits: our networks, tasks, and the families of diffusers.

As `tests.samplers.test_waits`, which has the table of what must wait.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import gen.pipeline.run
from gen.adapters import Adapter, write_adapter
from gen.generator import Generator
from gen.nn.backbones.positional_query import query_positions
from gen.nn.backbones.upsampler import shown_picture
from gen.nn.registry import build
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.guidance.cfg import ClassifierFree
from samplers.noise import normal
from samplers.path import VariancePreserving
from samplers.registry import get_grid, get_solver
from samplers.sample import trajectory
from tests.gen.conftest import UVIT, randomise
from tests.gen.joint import OWN as JOINT
from tests.gen.test_adapters_generator import DENOISER, lora
from tests.gen.test_dimr import TINY as DIMR
from tests.gen.test_layout import TWO
from tests.pretend import pretended
from tests.samplers.test_waits import STAY, waits

__all__ = ["pretended"]

PICTURE = Image.radial_gradient("L").resize((32, 32)).convert("RGB")
HALF = Image.linear_gradient("L").resize((32, 32))
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "negative prompt": {"negative_prompt": "blurry"},
    "another size": {"height": 32, "width": 48},
    "philox": {"noise_kind": "philox", "sampler": "euler_a"},
    "brownian": {"sampler": "dpmpp_2m_sde"},
    "image": {"image": PICTURE, "strength": 0.9},
    "mask": {"image": PICTURE, "mask": HALF, "strength": 1.0},
    "prompts that change": {"prompt": ["a [red:blue:0.5] heart", "a [cat|dog]"]},
    "prompts joined": {"prompt": ["a cat AND a dog:0.5"]},
    "an energy": {"guide": "brightness"},
    "negtome": {"negtome": "batch"},
    "layout": {"prompt": "the moon", "layout": TWO},
}


@pytest.fixture
def opened(pretended, tiny_model, monkeypatch):
    """A model on the device, whose steps are marked."""

    def marked(*args, **named):
        pretended.mark()
        for state in trajectory(*args, **named):
            pretended.mark()
            yield state

    monkeypatch.setattr(gen.pipeline.run, "trajectory", marked)
    return Generator.from_pretrained(tiny_model, device=pretended.device, dtype="float32", batch_invariant=False)


def call(generator, **given):
    usual = {"prompt": ["a cat", "a red heart on the moon"], "seed": 7, "num_inference_steps": 5, "progress": False}
    return generator(**usual | given)


@pytest.mark.parametrize("name", CALLS)
def test_no_call_waits_after_its_first_step(pretended, opened, name):
    made = call(opened, **CALLS[name])
    assert not waits(pretended, 1), name
    assert made.images[0].size[1] == 32


METHODS: dict[str, dict[str, Any]] = {
    "panorama": {"prompt": "a cat", "height": 32, "width": 64},
    "outpaint": {"image": PICTURE, "prompt": "a cat", "right": 32},
    "ambiguous": {"prompt": "a cat", "others": ["a dog"]},
    "restore": {"image": PICTURE, "task": "colorize", "prompt": "a cat"},
}


@pytest.mark.parametrize("name", METHODS)
def test_no_other_method_waits(pretended, opened, name):
    """In the last two of five steps: in views, pixels take over from latents on the way."""
    getattr(opened, name)(**METHODS[name], seed=7, num_inference_steps=5, progress=False)
    assert len(pretended.seen) == 6 and not waits(pretended, -3), name


@pytest.mark.parametrize("name", ["merge", "switch", "composite"])
def test_no_composition_of_adapters_waits(pretended, opened, tmp_path, name):
    for i, (one, layers) in enumerate({"one": DENOISER, "two": DENOISER[:1]}.items()):
        opened.load_adapter(write_adapter(Adapter(one, lora(i, *layers)), tmp_path / f"{one}.safetensors", "kohya"), weight=0.7)
    call(opened, composition=name)
    assert not waits(pretended, 1)


def test_the_picture_is_the_cpus(pretended, opened, tiny):
    made = call(opened, output_type="latent")
    torch.testing.assert_close(made.images, call(tiny, output_type="latent").images, rtol=1e-4, atol=1e-4)


def test_pictures_beside_and_positions_have_nothing_of_64_bits(pretended):
    """The device, which has none, gives what the CPU gives: of an upsampler's picture, and of positional queries."""
    small, eps = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    level, path = torch.tensor([0.1, 0.4]), VariancePreserving.linear()
    there = shown_picture(*map(pretended.put, (small, eps, level)), path, (8, 8))[0]
    here = shown_picture(small, eps, level, path, (8, 8))[0]
    torch.testing.assert_close(pretended.take(there), here, rtol=1e-5, atol=1e-5)
    windows = torch.tensor([[-0.5, -0.25, 2.0, 1.5]])
    places = query_positions(pretended.put(windows), 4, 3, 16)
    torch.testing.assert_close(pretended.take(places).double(), query_positions(windows, 4, 3, 16), rtol=1e-5, atol=1e-5)


FAMILIES = (
    *("stable_diffusion", "latent_consistency", "sdxl", "pixart", "dit", "sd3", "flux", "sana"),
    *("chroma", "auraflow", "cogview4", "hidream", "lumina2", "sana_sprint", "kolors"),
    *("qwen_image", "flux2", "flux2_klein", "krea2", "z_image"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_bridged_network_waits(pretended, bridged, name):
    """After the first step, for prompts of other lengths under guidance."""
    _, generator = bridged(name)
    device, on = pretended.device, torch.device("cpu")
    if name == "dit":
        condition = Condition(label=torch.tensor([7, 3]))
    else:
        condition = generator.encode_prompt(["a cat", "a red heart on the moon, and more of it"])
    network = copy.deepcopy(generator.network)
    assert next(network.parameters()).device == on
    pretended.float64 = True  # diffusers knows the devices without by their names
    outer = generator.denoiser
    denoiser: Any = NetworkDenoiser(network.to(device), outer.path, outer.prediction, outer.clock, outer.input_scale)
    if outer.learned_variance:
        denoiser = NetworkDenoiser(network, outer.path, outer.prediction, outer.clock, learned_variance=True)
    if name not in ("latent_consistency", "sana_sprint"):
        denoiser = ClassifierFree(denoiser, 2.0)
    levels = get_grid("uniform", outer.path, 4)
    x = normal([1, 2], (generator.channels, 8, 8), "latents", device=device) * levels[0].sigma
    pretended.mark()
    condition = condition.map(lambda value: value.to(device))
    for _ in trajectory(denoiser, get_solver("euler"), x, levels, condition, context=Context()):
        pretended.mark()
    assert not waits(pretended, 2), name
    stays = [wait for wait in pretended.between(2) if wait.line.split(":")[0] in STAY]
    assert bool(stays) == (name in STAY.values())


OWN: dict[str, dict[str, Any]] = {
    "uvit": UVIT | {"num_classes": 3},
    "dit": {"size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 8, "text_dim": 16},
    "dit with routing": {"size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2, "routing": {"share": 0.5}},
    "dimr": {**DIMR, "channels": 4, "num_classes": 3},
    **JOINT,
}


@torch.no_grad()
@pytest.mark.parametrize("name", OWN)
def test_no_network_of_ours_waits(pretended, name):
    """With prompts of other lengths, and at a size it was not trained at where it has no table: after a run's first call."""
    config = {"type": name.split()[0], **OWN[name]}
    network = randomise(build(config), 3).to(pretended.device).eval()
    x = pretended.put(torch.randn(2, config["channels"], 8, 8 if name == "mmdit" else 16))
    condition, width = Condition(), config.get("text_dim", 0)
    if width:
        mask = torch.arange(config["text_tokens"]) < torch.tensor([[3], [7]])
        condition = Condition(tokens=pretended.put(torch.randn(2, config["text_tokens"], width)), mask=pretended.put(mask))
    if config.get("pooled_dim"):
        condition = replace(condition, pooled=pretended.put(torch.randn(2, config["pooled_dim"])))
    if config.get("num_classes"):
        condition = replace(condition, label=pretended.put(torch.tensor([1, -1])))
    if "guidance" in config.get("scalars", ()):
        condition = replace(condition, extra={"guidance": pretended.put(torch.ones(2))})
    context, time = Context(), pretended.put(torch.rand(2))
    network(x, time, condition, context)
    pretended.mark()
    network(x, time, condition, context)
    pretended.mark()
    assert not waits(pretended), name


def test_previews_need_no_float64(pretended, opened):
    assert len(opened.preview(torch.randn(2, 4, 8, 8))) == 2
