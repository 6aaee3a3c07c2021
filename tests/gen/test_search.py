"""The best picture of a prompt: chosen as by hand, replayed without the search, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gen.cli.app import main
from gen.pipeline.png import read_recipe
from samplers.editing.interpolation import slerp
from samplers.noise import normal
from samplers.search.noise_tree import METHODS

CALL = {"num_inference_steps": 2, "progress": False}


def red(images, prompts):
    assert len(prompts) == len(images) and {*prompts} == {"a cat"}
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def redness(image) -> float:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return red(pixels, ["a cat"]).double().item()


def test_the_best_of_several_is_the_one_that_a_caller_would_choose(tiny):
    by_hand = [tiny("a cat", seed=seed, **CALL).images[0] for seed in range(5, 11)]
    ranks = sorted(range(6), key=lambda i: -redness(by_hand[i]))
    found = tiny.search("a cat", red, tries=6, seed=5, keep=2, **CALL)
    assert found.seeds == [5 + ranks[0], 5 + ranks[1]]
    for image, i in zip(found.images, ranks, strict=False):
        assert image.tobytes() == by_hand[i].tobytes()
    assert found.rewards == (redness(by_hand[ranks[0]]), redness(by_hand[ranks[1]]))
    assert (found.first, found.first_seed) == (redness(by_hand[0]), 5) and (found.tries, found.nfe) == (6, 4.0 * 6 / 2)
    assert found.recipes[0].turns is None  # an ordinary picture


@pytest.mark.parametrize("method", METHODS)
def test_what_is_found_replays_without_the_search(tiny, method):
    call = {"method": method, "tries": 9, "seed": 3, **CALL}
    found = tiny.search("a cat", red, **call)
    assert redness(found.images[0]) == found.rewards[0] == max(found.rounds) >= found.first
    assert sorted(found.rounds) == list(found.rounds)
    again = tiny.replay(found.recipes[0], progress=False)
    assert again.images[0].tobytes() == found.images[0].tobytes() and again.recipes[0].turns == found.recipes[0].turns
    one = tiny.search("a cat", red, **call, batch_size=1)
    assert one.images[0].tobytes() == found.images[0].tobytes()


def test_few_pictures_of_a_long_round_are_in_memory(tiny, monkeypatch):
    """A round is judged in parts, and what is found is the same."""
    whole, parts = tiny.search("a cat", red, tries=7, seed=3, keep=2, **CALL), []

    def judge(images, prompts):
        parts.append(len(images))
        return red(images, prompts)

    monkeypatch.setattr("gen.tasks.search.search.AT_ONCE", 4)
    monkeypatch.setattr("gen.tasks.search.search.JUDGED", 3)
    found = tiny.search("a cat", judge, tries=7, seed=3, keep=2, **CALL)
    assert parts == [3, 1, 3] and (found.seeds, found.rewards, found.rounds) == (whole.seeds, whole.rewards, whole.rounds)


def test_its_noise_is_turned_along_the_sphere_one_seed_after_another(tiny):
    begun = []
    for seed in range(40):  # until a search goes two turns from its seed
        found = tiny.search("a cat", red, method="zero_order", tries=9, strength=0.3, seed=100 * seed, **CALL)
        turns = found.recipes[0].turns or ()
        if len(turns) == 2:
            break
    shape = tuple(tiny("a cat", seed=1, output_type="latent", **CALL).images.shape[1:])
    noise = normal([found.seeds[0]], shape, "latents")
    for turn in turns:
        assert turn.strength == 0.3
        noise = slerp(noise, normal([turn.seed], shape, "latents"), turn.strength)
    begun = tiny("a cat", latents=noise, **CALL).images[0]
    assert begun.tobytes() == found.images[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seeds": [1]}, "takes no seeds"),
        ({"latents": torch.zeros(1)}, "takes no latents"),
        ({"output_type": "pt"}, "takes no output_type"),
        ({"variation_seed": 3}, "takes no variation_seed"),
        ({"variation_strength": 0.5}, "leave the variation out"),
        ({"keep": 9}, "keep"),
        ({"reward": "brightnes"}, "did you mean 'brightness'"),
        ({"reward_options": {"width": 2}}, "given by name"),
        ({"prompt": ["a", "b"]}, "one prompt"),
    ],
)
def test_what_a_search_cannot_do_is_said(tiny, arguments, said):
    with pytest.raises(ValueError, match=said):
        tiny.search(**{"prompt": "a cat", "reward": red, "tries": 4, **CALL, **arguments})


def test_from_the_command_line(tiny_model, tmp_path, capsys):
    sheet, out = tmp_path / "sheet.png", tmp_path / "cat.png"
    common = ["--steps", "2", "--seed", "4", "--model", str(tiny_model), "--device", "cpu"]
    asked = ["search", "a cat", "--reward", "colour", "--reward-option", "colour=red", "--method", "tree", "--tries", "12"]
    assert main([*asked, *common, "-n", "2", "-o", str(tmp_path / "pictures"), "--grid", str(sheet)]) == 0
    made, said = capsys.readouterr()
    assert len(made.split()) == 3 and sheet.exists() and "without a search" in said and "round 1" in said
    assert main([*asked[:4], "--tries", "2", *common, "-o", str(out)]) == 2
    assert "needs colour; give --reward-option colour=VALUE" in capsys.readouterr().err
    assert main(["search", "a cat", "--tries", "2", "-n", "3", *common, "-o", str(out)]) == 2
    assert "--number is 3, but --tries 2 makes no more than 2" in capsys.readouterr().err
    assert main(["search", "a cat", "--reward", "brightness", "--tries", "3", *common, "-o", str(out)]) == 0
    assert read_recipe(out).seed in (4, 5, 6)
