"""Adapters of a `Generator` and on the command line: recipes, replay, the text encoder, and that a run changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gen.adapters import Adapter, Delta, write_adapter
from gen.generator import Generator
from gen.io.weights import sha256
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe


def lora(seed: int, *shapes: tuple[str, int, int], scale: float = 2.0) -> dict[str, Delta]:
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.5

    return {name: Delta({"down": rand(2, width), "up": rand(out, 2)}, scale) for name, out, width in shapes}


DENOISER = (("denoiser.mid_block.attn.to_q", 32, 32), ("denoiser.in_blocks.0.mlp.fc1", 128, 32))
TEXT = (("text_encoder.layers.0.up", 32, 16),)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    made = {"style": lora(0, *DENOISER), "both": lora(1, *DENOISER, *TEXT), "words": lora(2, *TEXT)}
    formats = {"style": "kohya", "both": "diffusers", "words": "kohya"}
    return {
        name: write_adapter(Adapter(name, layers), tmp_path / f"{name}.safetensors", formats[name])
        for name, layers in made.items()
    }


@pytest.fixture
def generator(tiny_model) -> Generator:
    return Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")


def make(generator: Generator, **call) -> torch.Tensor:
    return generator("a red heart", seed=1, num_inference_steps=2, output_type="pt", progress=False, **call).images


def merged(folder: Path, generator: Generator, weights: dict[str, float]) -> Generator:
    """A second generator with W + w D written into its weights."""
    other = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    for part, network in (("denoiser", other.network), ("text_encoder", other.text_encoder)):
        with torch.no_grad():
            for name, w in weights.items():
                for target, delta in generator.loaded_adapters.parts[part]._placed[name]:
                    weight = network.get_submodule(target.module).weight
                    rows = slice(*target.rows) if target.rows else slice(None)
                    weight[rows] += w * delta.delta(weight[rows].clone())
    return other


@pytest.mark.parametrize("names", [["style"], ["both"], ["words"], ["style", "both", "words"]])
def test_pictures_are_those_of_changed_weights(generator, tiny_model, files, names):
    plain = make(generator)
    state = {name: value.clone() for name, value in generator.network.state_dict().items()}
    weights = {}
    for i, name in enumerate(names):
        weights[name] = 0.5 + 0.25 * i
        report = generator.load_adapter(files[name], weight=weights[name])
        assert report.complete
    assert generator.adapters == weights
    acted = make(generator)
    assert (acted - plain).abs().max() > 0.01
    torch.testing.assert_close(acted, make(merged(tiny_model, generator, weights)), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, state[name]) for name, value in generator.network.state_dict().items())
    generator.set_adapters({})
    assert torch.equal(make(generator), plain)
    for name in names:
        generator.unload_adapter(name)
    assert torch.equal(make(generator), plain) and generator.adapters == {}


def test_a_name_loaded_anew_is_another_adapter(generator, files):
    """What the text encoder made of a prompt must not outlive the adapter that it was made with."""
    generator.load_adapter(files["words"], name="x")
    first = make(generator)
    generator.unload_adapter("x")
    generator.load_adapter(Adapter("x", lora(9, *TEXT)))
    assert not torch.equal(make(generator), first)
    generator.unload_adapter("x")
    generator.load_adapter(files["words"], name="x")
    assert torch.equal(make(generator), first)


def test_recipes_hold_adapters_and_replay_needs_the_same_files(generator, files, tmp_path):
    generator.load_adapter(files["style"], weight=0.75)
    generator.load_adapter(files["both"], name="other", weight=-0.5)
    made = generator("a cat", seed=3, num_inference_steps=2, progress=False)
    [recipe] = made.recipes
    assert recipe.adapters == {"style": 0.75, "other": -0.5}
    assert recipe.adapter_files == {"style": sha256(files["style"]), "other": sha256(files["both"])} and not recipe.unrecorded
    assert Recipe.from_json(recipe.to_json()) == recipe
    generator.set_adapters({"style": 1.0})  # a replay takes the recipe's weights
    again = generator.replay(recipe, progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes() and again.recipes == [recipe]
    assert generator.adapters == {"style": 1.0}
    generator.unload_adapter("other")
    with pytest.raises(ValueError, match=rf"adapter 'other' \(sha256 {sha256(files['both'])[:12]}…\), which is not loaded"):
        generator.replay(recipe, progress=False)
    generator.load_adapter(files["words"], name="other")
    with pytest.raises(ValueError, match=r"loaded adapter 'other' is not the file"):
        generator.replay(recipe, progress=False)


def test_recipes_without_adapters_are_as_before(generator):
    [recipe] = generator("a cat", seed=3, num_inference_steps=1, progress=False).recipes
    assert "adapter_files" not in json.loads(recipe.to_json())


def test_what_no_file_holds_is_said_to_be_unrecorded(generator):
    generator.load_adapter(Adapter("mine", lora(0, *DENOISER)))
    [recipe] = generator("a cat", seed=3, num_inference_steps=1, progress=False).recipes
    assert recipe.adapters == {"mine": 1.0} and recipe.adapter_files is None and recipe.unrecorded == ("adapter mine",)
    generator.set_adapters({})
    with generator.loaded_adapters.parts["denoiser"].fusing({"mine": 1.0}):
        [recipe] = generator("a cat", seed=3, num_inference_steps=1, progress=False).recipes
        assert recipe.unrecorded == ("fused adapters",)
        with pytest.raises(ValueError, match="unfuse it before unloading"):
            generator.unload_adapter("mine")
    generator.unload_adapter("mine")


def test_wrong_requests(generator, class_model, files):
    with pytest.raises(ValueError, match="No adapter named 'style' is loaded; load it with load_adapter"):
        generator.set_adapters({"style": 1.0})
    with pytest.raises(ValueError, match="none is"):
        generator.unload_adapter("style")
    generator.load_adapter(files["style"])
    for name, weights in (("Did you mean 'style'", {"stile": 1}), ("give a number from -100", {"style": float("nan")}),
                          ("give a number from -100", {"style": True})):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            generator.set_adapters(weights)
    with pytest.raises(ValueError, match="loaded already; give this one another name"):
        generator.load_adapter(files["style"])
    with pytest.raises(ValueError, match="is no name for an adapter"):
        generator.load_adapter(files["both"], name="a\nb")
    with pytest.raises(ValueError, match="weight is 'x'"):
        generator.load_adapter(files["both"], weight="x")
    with pytest.warns(UserWarning, match="weights beyond 10"):
        generator.set_adapters({"style": 11})
    assert list(generator.loaded_adapters.loaded) == ["style"]
    generator.adapters = {"typo": 1.0}
    with pytest.raises(ValueError, match="No adapter named 'typo'"):
        make(generator)
    with pytest.raises(ValueError, match="this model has no text encoder"):
        Generator.from_pretrained(class_model, device="cpu").load_adapter(files["words"])


def test_a_callback_that_changes_adapters_changes_the_next_call(generator, files):
    generator.load_adapter(files["style"])
    expected = make(generator)

    def switch(generator, step, t, tensors):
        generator.set_adapters({})

    assert torch.equal(make(generator, callback_on_step_end=switch), expected)
    assert not torch.equal(make(generator), expected)


def test_command_line(image, fewstep, tiny_model, files):
    code, _, err = image("a cat", "--seed", 1, "--steps", 2, "--lora", f"{files['style']}:0.8", "--lora", files["both"])
    assert code == 0, err
    assert "style: 2 layers (LoRA), rank 2, on the denoiser" in err and "on the denoiser and text encoder" in err
    recipe = read_recipe("a-cat-1.png")
    assert recipe.adapters == {"style": 0.8, "both": 1.0} and len(recipe.adapter_files) == 2
    assert "style" in fewstep("info", "a-cat-1.png")[1]
    replay = ("replay", "a-cat-1.png", "--model", tiny_model)
    renamed = files["both"].rename(files["both"].with_name("renamed.safetensors"))
    code, _, err = fewstep(*replay, "--lora", files["style"], "--lora", renamed)
    assert code == 0 and "Identical to the last byte" in err, err
    code, _, err = fewstep(*replay, "--lora", files["style"])
    assert code == 2 and "adapter 'both'" in err and "--lora" in err
    code, _, err = fewstep(*replay, "--lora", files["words"])
    assert code == 2 and "is not one of the files" in err
    code, _, err = fewstep(*replay, "--lora", f"{files['style']}:0.5")
    assert code == 2 and "the recipe's own, 0.8" in err
    code, _, err = image("a cat", "--lora", "nowhere.safetensors")
    assert code == 2 and err.count("\n") == 1 and "does not exist" in err
    same = files["style"].parent / "sub"
    same.mkdir()
    code, _, err = image(
        "a dog", "--seed", 2, "--lora", files["style"], "--lora", files["words"].rename(same / "style.safetensors")
    )
    assert code == 0 and list(read_recipe("a-dog-2.png").adapters) == ["style", "style-2"]
