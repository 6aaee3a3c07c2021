"""The model that comes with the package: it opens, draws what it is asked for, and draws it again."""

from __future__ import annotations

import json

import pytest
import torch

from distill.eval.colours import object_colours
from gen import Generator
from gen.models.pretrained import DEFAULT


@pytest.fixture(scope="module")
def generator():
    return Generator.from_pretrained("default", device="cpu", dtype="float32")


def test_its_folder_holds_a_model_card_and_small_weights():
    assert (DEFAULT / "README.md").read_text().startswith("# The default model")
    weights = [path.stat().st_size for path in DEFAULT.rglob("*.safetensors")]
    assert len(weights) == 3 and sum(weights) < 64e6
    assert json.loads((DEFAULT / "config.json").read_text())["sample_size"] == 128


def test_a_red_heart_is_red_and_replays(generator):
    output = generator("a red heart", seed=7, progress=False)
    assert output.images[0].size == (128, 128)
    again = generator.replay(output.recipes[0], progress=False)
    assert again.images[0].tobytes() == output.images[0].tobytes()
    pictures = generator(["a red heart"] * 4, seed=0, output_type="pt", progress=False).images * 2 - 1
    assert object_colours(pictures).count("red") >= 3


def test_colours_are_obeyed_also_where_training_never_showed_them(generator):
    prompts = {"a purple car": "purple", "a pink elephant": "pink", "a blue mushroom": "blue", "a green dog": "green"}
    pictures = generator([p for p in prompts for _ in range(2)], seed=0, output_type="pt", progress=False).images * 2 - 1
    found = object_colours(pictures)
    wanted = [colour for colour in prompts.values() for _ in range(2)]
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 6


def test_no_tensor_is_left_without_values(generator):
    for network in (generator.network, generator.autoencoder, generator.text_encoder):
        for name, tensor in network.state_dict().items():
            assert not tensor.is_meta and torch.isfinite(tensor).all(), name
        assert not any(buffer.is_meta for buffer in network.buffers())
