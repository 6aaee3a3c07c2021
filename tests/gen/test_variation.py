"""Noise between that of two seeds: AUTOMATIC1111's formula, in recipes, replayed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gen.generator import Generator
from gen.pipeline.infotext import from_infotext, to_infotext
from gen.pipeline.png import read_recipe, save_image
from gen.tasks.variation.task import Variation
from samplers.editing.interpolation import slerp_columns
from samplers.noise import normal

CALL = {"num_inference_steps": 2, "progress": False}


def between(a: np.ndarray, b: np.ndarray, u: float) -> np.ndarray:
    """The web UI's `slerp` of one image (C, H, W), over its dimension 1, number by number."""
    mixed = np.empty_like(a)
    for c in range(a.shape[0]):
        for w in range(a.shape[2]):
            p, q = a[c, :, w], b[c, :, w]
            angle = math.acos(float(p @ q) / math.sqrt(float(p @ p) * float(q @ q)))
            mixed[c, :, w] = (math.sin((1 - u) * angle) * p + math.sin(u * angle) * q) / math.sin(angle)
    return mixed


@pytest.mark.parametrize("u", [0.0, 0.2, 0.7, 1.0])
def test_columns_turn_as_in_the_web_ui(u):
    a, b = normal([1, 2], (4, 16, 12), "a").double(), normal([3, 4], (4, 16, 12), "b").double()
    mixed = slerp_columns(a, b, u)
    for image, p, q in zip(mixed, a, b, strict=True):
        assert np.allclose(image.numpy(), between(p.numpy(), q.numpy(), u), rtol=1e-9, atol=1e-12)
    assert abs(float(mixed.std()) - 1) < 0.05  # still noise


def test_parallel_columns_go_straight():
    a = normal([1], (2, 1, 5), "a")  # columns of one number have no angle but 0 and pi
    assert torch.isfinite(slerp_columns(a, normal([2], (2, 1, 5), "b"), 0.3)).all()
    assert torch.allclose(slerp_columns(a, a, 0.3), a, rtol=1e-5)
    assert torch.allclose(slerp_columns(a, 3 * a, 0.5), 2 * a, rtol=1e-5)


def test_a_call_begins_with_that_noise(tiny, monkeypatch):
    begun = []
    prepare = Variation.prepare

    def seen(self, batch):
        batch = prepare(self, batch)
        begun.append((batch.noise.clone(), batch.x.clone(), batch.settings.levels[0].sigma))
        return batch

    monkeypatch.setattr(Variation, "prepare", seen)
    tiny("a cat", seed=5, variation_seed=9, variation_strength=0.3, **CALL)
    noise, x, sigma = begun[0]
    own, other = (normal([seed], tuple(noise.shape[1:]), "latents") for seed in (5, 9))
    assert np.allclose(noise[0].numpy(), between(own[0].numpy(), other[0].numpy(), 0.3), rtol=1e-4, atol=1e-6)
    assert torch.equal(x, noise * sigma)


@pytest.mark.parametrize("kind", ["torch", "philox"])
def test_the_ends_are_the_pictures_of_the_two_seeds(tiny, kind):
    call = {**CALL, "noise_kind": kind, "output_type": "pt"}
    at = [tiny("a cat", seed=5, variation_seed=9, variation_strength=u, **call).images for u in (0, 0.5, 1)]
    own, other = (tiny("a cat", seed=seed, **call).images for seed in (5, 9))
    assert torch.equal(at[0], own) and torch.allclose(at[2], other, atol=1e-3)
    assert (at[1] - own).abs().max() > 0.01 < (at[1] - other).abs().max()


def test_pictures_of_one_seed_get_one_variation_after_another(tiny):
    made = tiny(["a cat", "a dog"], seed=5, num_images_per_prompt=2, variation_seed=9, **CALL).recipes
    assert [(r.seed, r.variation.seed, r.variation.strength) for r in made] == [(5, 9 + i, 0.2) for i in range(4)]
    made = tiny("a cat", seeds=[3, 4, 3], num_images_per_prompt=3, variation_seed=9, variation_strength=0.5, **CALL).recipes
    assert [(r.seed, r.variation.seed) for r in made] == [(3, 9), (4, 9), (3, 10)]
    random = tiny("a cat", seed=5, variation_strength=0.5, **CALL).recipes[0]
    assert random.variation.strength == 0.5 and random.variation.seed >= 0
    assert tiny("a cat", seed=5, variation_seed=9, variation_strength=0, **CALL).recipes[0].variation is None


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a", "dpmpp_sde"])
def test_recipes_make_the_same_picture_again(tiny, tmp_path, sampler):
    made = tiny("a cat", seed=5, num_images_per_prompt=3, variation_seed=9, variation_strength=0.4, sampler=sampler, **CALL)
    for image, recipe in zip(made.images, made.recipes, strict=True):
        path = save_image(image, tmp_path / f"{recipe.variation.seed}.png", recipe)
        assert tiny.replay(read_recipe(path), progress=False).images[0].tobytes() == image.tobytes()
    assert len({image.tobytes() for image in made.images}) == 3
    with pytest.raises(ValueError, match="leave the variation out"):
        tiny.replay(made.recipes[0], progress=False, variation_seed=3)


def test_an_edit_begins_with_that_noise_too(tiny):
    image = tiny("a cat", seed=1, **CALL).images[0]
    call = {**CALL, "image": image, "strength": 0.5}
    made = tiny("a dog", seed=5, variation_seed=9, variation_strength=1.0, **call).images[0]
    other, own = (np.asarray(tiny("a dog", seed=seed, **call).images[0], dtype=int) for seed in (9, 5))
    assert np.abs(np.asarray(made, dtype=int) - other).max() <= 1 < np.abs(own - other).max()


def test_the_parameters_text_says_it_as_the_web_ui_does(tiny, tmp_path):
    sd_parsers = pytest.importorskip("sd_parsers")
    made = tiny("a cat", seed=5, variation_seed=9, variation_strength=0.25, **CALL)
    text = to_infotext(made.recipes[0])
    assert "Variation seed: 9, Variation seed strength: 0.25" in text
    assert from_infotext(text)["Variation seed strength"] == "0.25"
    found = sd_parsers.ParserManager().parse(save_image(made.images[0], tmp_path / "a.png", made.recipes[0]))
    assert found.metadata["Variation seed"] in (9, "9")
    plain = to_infotext(tiny("a cat", seed=5, **CALL).recipes[0])
    assert "Variation" not in plain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"variation_seed": -1}, "variation_seed is -1"),
        ({"variation_seed": 1.5}, "variation_seed is 1.5"),
        ({"variation_seed": 1, "variation_strength": 1.5}, "variation_strength is 1.5; give a number from 0 to 1"),
        ({"variation_strength": "much"}, "variation_strength"),
        ({"variation_seed": (1 << 63) - 1, "num_images_per_prompt": 2}, "variation_seed"),
        ({"variation_seed": 1, "latents": torch.zeros(1, 4, 8, 8)}, "latents are the noise itself"),
    ],
)
def test_what_cannot_be_is_a_sentence(tiny, call, message):
    with pytest.raises(ValueError, match=message):
        tiny("a cat", **CALL, **call)


def test_a_pipeline_as_a_whole_refuses_it(bridged):
    pipeline, _ = bridged("stable_diffusion")
    with pytest.raises(ValueError, match="runs as a whole, so it takes no variation_seed"):
        Generator.from_pipeline(pipeline)("a cat", variation_seed=1, **CALL)


def test_the_command(tiny_model, tmp_path, monkeypatch, capsys):
    from gen.cli.app import main

    monkeypatch.chdir(tmp_path)
    arguments = ["image", "a cat", "--seed", "5", "-n", "2", "--steps", "2", "--model", str(tiny_model), "--device", "cpu"]
    assert main([*arguments, "--variation-seed", "9", "--variation-strength", "0.3", "-q"]) == 0
    files = capsys.readouterr().out.split()
    assert files == ["a-cat-5-variation-9.png", "a-cat-5-variation-10.png"]
    assert [read_recipe(file).variation.seed for file in files] == [9, 10]
    assert main(["replay", files[1], "--model", str(tiny_model)]) == 0
    assert "Identical to the last byte" in capsys.readouterr().err


def test_a_sweep_gives_every_cell_its_own_seed(tiny):
    from gen.calls.sweep import Sweep

    sweep = Sweep.of(
        ["a cat", "a dog"], ["variation-seed=9,12", "variation-strength=0.25,0.5"], {"seed": 5, "num_inference_steps": 2}
    )
    made = list(sweep.run(tiny))
    assert [(m.recipe.seed, m.recipe.variation.seed) for m in made] == [(5, 9), (5, 12)] * 4
