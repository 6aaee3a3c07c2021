"""Layouts of layers: one opaque layer is a plain picture; several are the picture that the wrapper makes by hand; recipes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gen.pipeline.png import read_recipe
from gen.tasks.layout.cli import read_spec as read_given
from gen.tasks.layout.file import LayoutError, read_layout
from gen.tasks.layout.layers import LayeredLayout
from gen.tasks.layout.spec import read_spec
from gen.tasks.layout.task import place

CALL = {"seed": 7, "num_inference_steps": 3, "progress": False}
TWO = {
    "layers": [{"prompt": "the moon"}, {"prompt": "a red heart", "box": [8, 8, 16, 16], "opacity": 0.75}],
    "scene": "a red heart on the moon",
    "until": 0.5,
}


def latents(generator, layout, **call):
    return generator.layout(layout, output_type="latent", **{**CALL, **call}).images


def test_one_opaque_layer_is_a_plain_picture(tiny):
    one = {"layers": [{"prompt": "a red heart"}]}
    for call in ({}, {"sampler": "euler_a"}, {"num_images_per_prompt": 2, "negative_prompt": "blurry"}):
        plain = tiny("a red heart", output_type="latent", **{**CALL, **call}).images
        assert torch.equal(latents(tiny, one, **call), plain)
    images = tiny.layout(one, **CALL).images
    assert np.array_equal(np.asarray(images[0]), np.asarray(tiny("a red heart", **CALL).images[0]))


def test_an_opaque_layer_above_all_is_what_is_seen(tiny):
    """Wholly hidden layers are refused; one that is nearly clear leaves the picture below nearly as it is."""
    with pytest.raises(ValueError, match="Nothing of layer 0 is seen"):
        latents(tiny, {"layers": [{"prompt": "a cat"}, {"prompt": "a dog"}]})
    below = {"layers": [{"prompt": "a cat"}, {"prompt": "a dog", "opacity": 1e-4}], "scene": "a cat"}
    assert (latents(tiny, below) - latents(tiny, {"layers": [{"prompt": "a cat"}]})).abs().max() < 0.01


def test_layers_without_a_common_end_are_pictures_upon_one_another(tiny):
    """Each is the picture of its own prompt and seed; blended by alpha on the grid of latents."""
    apart = {**TWO, "until": 20}
    moon, heart = (tiny(text, output_type="latent", **CALL).images for text in ("the moon", "a red heart"))
    alpha = torch.zeros(1, 1, 8, 8)
    alpha[..., 2:6, 2:6] = 0.75
    assert (latents(tiny, apart) - (alpha * heart + (1 - alpha) * moon)).abs().max() < 1e-4
    assert (latents(tiny, TWO) - latents(tiny, apart)).abs().max() > 1e-3
    assert not torch.equal(latents(tiny, TWO), latents(tiny, {**TWO, "scene": "a blue cat"}))


def test_recipes_hold_layers_and_replay(tiny, tmp_path):
    made = tiny.layout(TWO, **CALL)
    path = made.save(tmp_path / "a.png")[0]
    recipe = read_recipe(path)
    assert recipe.prompt == "a red heart on the moon" and recipe.layout.layered and recipe.layout.until == 0.5
    assert [region.opacity for region in recipe.layout.regions] == [None, 0.75]
    assert np.array_equal(np.asarray(tiny.replay(recipe, progress=False).images[0]), np.asarray(made.images[0]))
    plain = tiny.layout({"background": "a cat", "regions": [{"prompt": "a dog", "box": [0, 0, 0.5, 1]}]}, **CALL).recipes[0]
    assert "layered" not in plain.to_json() and "opacity" not in plain.to_json()
    assert "attention" not in json.loads(plain.to_json())["layout"]


def test_layers_in_a_file(tiny, tmp_path):
    Image.new("L", (32, 32), 255).save(tmp_path / "mask.png")
    layers = [{"use": "ground"}, {"prompt": "a dog", "mask": "mask.png", "opacity": 0.5}]
    (tmp_path / "a.json").write_text(json.dumps({"prompts": {"ground": "the moon"}, "layers": layers}))
    spec = read_layout(tmp_path / "a.json")
    assert spec.prompt == "a dog, the moon"
    record = place(spec, 32, 32, 4)
    masks = LayeredLayout(record, 32, 32).masks(4)
    assert [float(mask.mean()) for mask in masks] == [0.5, 0.5] and record.regions[0].prompt == "the moon"
    assert tiny.layout(tmp_path / "a.json", **CALL).images[0].size == (32, 32)
    (tmp_path / "b.json").write_text(json.dumps({"layers": [{"prompt": "a", "mask": "../x.png"}]}))
    with pytest.raises(LayoutError, match=r"layers\.0\.mask.*outside"):
        read_layout(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({}, "regions or layers"),
        ({"layers": [{"prompt": "a"}], "regions": [{"prompt": "a", "box": [0, 0, 1, 1]}]}, "regions or layers"),
        ({"layers": [{"prompt": "a", "weight": 2.0}]}, "no weight of its own"),
        ({"layers": [{"prompt": "a", "negative_prompt": "b"}]}, "no negative_prompt of its own"),
        ({"layers": [{"prompt": "a", "opacity": 2}]}, "opacity"),
        ({"layers": [{"box": [0, 0, 1, 1]}]}, "give the layer a prompt"),
        ({"layers": [{"prompt": "a"}], "background": "b"}, "background is not for a layout of layers"),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}], "until": 1.0}, "until is not for a layout of regions"),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}], "until": 0}, "until is not for a layout of regions"),
        ({"layers": [{"prompt": "a"}], "bootstrap": 0.0}, "bootstrap is not for a layout of layers"),
    ],
)
def test_what_no_layout_can_have(layout, says):
    with pytest.raises(ValueError, match=says):
        read_spec(layout)


def test_layers_take_no_background_on_the_command_line():
    with pytest.raises(ValueError, match="no background"):
        read_given('{"layers": [{"prompt": "a"}]}', {}, "blue")


def test_what_is_refused(tiny):
    with pytest.raises(ValueError, match="75% of the picture is in no opaque layer"):
        latents(tiny, {"layers": [{"prompt": "a cat", "box": [0, 0, 0.5, 0.5]}]})
    with pytest.raises(ValueError, match="takes no variation"):
        latents(tiny, TWO, variation_seed=2)
