"""How prompts are read beside their words, against the pictures of diffusers' pipelines that are asked for the same."""

from __future__ import annotations

import contextlib

import pytest
import torch

from gen.models.prompt_reading import Reading
from gen.pipeline.recipe import Recipe
from tests.gen.test_bridge_parity import CLOSE, PROMPT, noise, ours, theirs

OTHER, THIRD = "a blue moon", "salt"
ASKED = {
    "stable_diffusion": [{"clip_skip": 1}, {"clip_skip": 2, "negative_prompt": "blurry"}],
    "sdxl": [
        {"clip_skip": 1},
        {"prompt_2": OTHER},
        {"prompt_2": OTHER, "negative_prompt": "blurry", "negative_prompt_2": THIRD},
        {"original_size": (40, 24), "target_size": (32, 48), "crops_coords_top_left": (3, 5)},
        {"original_size": (40, 24)},
        {"negative_original_size": (8, 9), "negative_target_size": (10, 11), "negative_crops_coords_top_left": (1, 2)},
        {"negative_original_size": (8, 9), "negative_target_size": (10, 11), "negative_prompt": "blurry"},
    ],
    "sd3": [
        {"clip_skip": 1},
        {"prompt_2": OTHER},
        {"prompt_3": OTHER, "negative_prompt": "blurry", "negative_prompt_3": THIRD, "negative_prompt_2": OTHER},
        {"max_sequence_length": 40},
    ],
    "flux": [{"prompt_2": OTHER}, {"max_sequence_length": 40}],
    "pixart": [{"max_sequence_length": 20}],
    "sana": [{"max_sequence_length": 12}],
}


@contextlib.contextmanager
def final_norm_in_place(encoder):
    """The final norm where pipelines look for it, whatever transformers has; only so long, as the pipeline is shared."""
    if hasattr(encoder, "text_model"):
        yield
        return
    object.__setattr__(encoder, "text_model", encoder)
    try:
        yield
    finally:
        object.__delattr__(encoder, "text_model")


@pytest.mark.parametrize(("name", "asked"), [(name, asked) for name, rows in ASKED.items() for asked in rows])
def test_a_picture_read_so_is_the_pipelines_own(bridged, name, asked):
    pipeline, generator = bridged(name)
    x = noise(generator, 1)
    words = {key: [value] if isinstance(value, str) else value for key, value in asked.items()}
    with final_norm_in_place(pipeline.text_encoder):
        reference = theirs(name, pipeline, x, 4.0, **words)
    found = ours(name, generator, x, 4.0, **asked)
    torch.testing.assert_close(found, reference, **CLOSE)
    without = {key: value for key, value in asked.items() if key == "negative_prompt"}
    assert (ours(name, generator, x, 4.0, **without) - found).abs().max() > 1e-3


def test_clip_skip_counts_as_diffusers_does(bridged):
    """0 is the last layer, which AUTOMATIC1111 calls 1."""
    _, generator = bridged("stable_diffusion")
    plain = generator.encode_prompt([PROMPT]).tokens
    assert torch.equal(generator.encode_prompt([PROMPT], reading=Reading(clip_skip=0)).tokens, plain)
    assert (generator.encode_prompt([PROMPT], reading=Reading(clip_skip=1)).tokens - plain).abs().max() > 1e-2
    refused = generator.encode_prompt([PROMPT], negative=True, reading=Reading(clip_skip=1)).tokens
    assert torch.equal(refused, plain)  # negative prompts are read as ever, as in diffusers
    with pytest.raises(ValueError, match="clip_skip is 4, and this text encoder has 3 layers; give at most 3"):
        generator.encode_prompt([PROMPT], reading=Reading(clip_skip=4))


CALL = {"seed": 1, "num_inference_steps": 2, "output_type": "latent", "progress": False}


def test_recipes_hold_how_prompts_were_read(bridged):
    _, generator = bridged("sdxl")
    asked = {"clip_skip": 1, "prompt_2": ["a dog", "[a cat:a moon:0.5]"], "negative_prompt_2": "red",
             "original_size": (64, 64), "negative_original_size": (8, 8), "negative_target_size": (16, 16)}  # fmt: skip
    made = generator(["a cat", "a dog"], num_images_per_prompt=2, **asked, **CALL)
    recipe = Recipe.from_json(made.recipes[3].to_json())
    assert (recipe.prompt_2, recipe.negative_prompt_2, recipe.prompt_3) == ("[a cat:a moon:0.5]", "red", None)
    assert recipe.encoding.size_ids == (64, 64, 0, 0, 32, 32) and recipe.encoding.negative_size_ids == (8, 8, 0, 0, 16, 16)
    again = generator.replay(recipe, "latent", progress=False)
    assert torch.equal(again.images[0], made.images[3]) and again.recipes[0] == recipe
    alone = generator("a dog", **{**asked, "prompt_2": "[a cat:a moon:0.5]"}, **{**CALL, "seed": 4})
    assert torch.equal(alone.images[0], made.images[3])
    fixed = generator("a dog", **{**asked, "prompt_2": "a cat"}, **{**CALL, "seed": 4})
    assert not torch.equal(fixed.images[0], alone.images[0])
    plain = generator("a cat", **CALL).recipes[0]
    assert plain.encoding is None and plain.prompt_2 is None and "encoding" not in plain.to_json()


def test_regions_and_joined_prompts_are_read_so_too(bridged):
    _, generator = bridged("stable_diffusion")
    layout = {"regions": [{"prompt": "a cat", "box": [0, 0, 1, 1]}]}
    in_region = generator.layout(layout, clip_skip=1, **CALL)
    plain = generator("a cat", clip_skip=1, **CALL)
    torch.testing.assert_close(in_region.images[0], plain.images[0], atol=1e-5, rtol=0)
    joined = generator("a cat AND a cat:0", clip_skip=1, **CALL)
    torch.testing.assert_close(joined.images[0], plain.images[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt_3": "a"}, "takes no prompt_3: it takes clip_skip, prompt_2; leave it out"),
        ({"negative_prompt_3": "a"}, "takes no negative_prompt_3"),
        ({"max_sequence_length": 77}, "takes no max_sequence_length"),
        ({"clip_skip": -1}, "clip_skip"),
        ({"prompt_2": ["a", "b", "c"]}, "prompt_2 has 3 entries where 1 are asked for"),
        ({"original_size": 64}, "original_size is 64; give two whole numbers, height .top. first"),
        ({"target_size": (0, 64)}, "target_size"),
        ({"negative_original_size": (64, 64)}, "was given without negative_target_size"),
    ],
)
def test_what_a_model_does_not_take_is_one_sentence(bridged, asked, said):
    _, generator = bridged("sdxl")
    with pytest.raises(ValueError, match=said):
        generator("a cat", **asked, **CALL)


def test_models_with_one_way_of_reading_say_so(tiny):
    with pytest.raises(ValueError, match="takes no clip_skip: it has one way of reading"):
        tiny("a cat", clip_skip=1, **CALL)
    with pytest.raises(ValueError, match=r"is told no sizes \(SDXL is\); leave original_size out"):
        tiny("a cat", original_size=(32, 32), **CALL)


def test_the_command_line_says_it_too(bridged, tmp_path, monkeypatch):
    from gen.cli import app
    from gen.generator import Generator
    from gen.pipeline.png import read_recipe

    _, generator = bridged("sdxl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Generator, "from_pretrained", lambda *given, **named: generator)
    options = ["--clip-skip", 1, "--prompt-2", "a dog", "--negative-2", "red", "--original-size", 64, 48, "--crop", 1, 2]
    command = ["image", "a cat", "--seed", 1, "--steps", 1, "-o", "a.png", "--model", "sdxl", *options]
    assert app.main([str(part) for part in command]) == 0
    recipe = read_recipe(tmp_path / "a.png")
    assert (recipe.prompt_2, recipe.negative_prompt_2, recipe.encoding.clip_skip) == ("a dog", "red", 1)
    assert recipe.encoding.size_ids == (64, 48, 1, 2, 32, 32)
