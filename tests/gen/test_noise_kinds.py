"""Noise drawn on the device, as a call's setting: recipes say so, replays draw it again, older recipes draw as before."""

from __future__ import annotations

import pytest
import torch

from gen.pipeline.recipe import Recipe
from samplers.noise import normal

CALL = {"num_inference_steps": 4, "output_type": "latent", "progress": False}


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m_sde"])  # none, of each step, of a Brownian path
def test_recipes_know_the_kind_and_replays_draw_it_again(tiny, sampler):
    plain = tiny(["a cat", "a dog"], seed=3, sampler=sampler, **CALL)
    made = tiny(["a cat", "a dog"], seed=3, sampler=sampler, noise_kind="philox", **CALL)
    assert not torch.allclose(made.images, plain.images, atol=1e-2)
    recipe = Recipe.from_json(made.recipes[1].to_json())
    assert recipe.noise_kind == "philox"
    assert torch.equal(tiny.replay(recipe, "latent", progress=False).images[0], made.images[1])
    assert torch.equal(tiny("a dog", seed=4, sampler=sampler, noise_kind="philox", **CALL).images[0], made.images[1])
    assert torch.equal(tiny(["a cat", "a dog"], seed=3, sampler=sampler, noise_kind="torch", **CALL).images, plain.images)


def test_recipes_of_the_usual_kind_are_as_they_were(tiny):
    recipe = tiny("a cat", seed=3, **CALL).recipes[0]
    assert recipe.noise_kind is None and "noise_kind" not in recipe.to_json()


def test_the_first_noise_is_that_of_the_seed(tiny):
    noise = normal([3], (4, 8, 8), "latents", kind="philox")
    made = tiny("a cat", seed=3, noise_kind="philox", sampler="euler", **CALL)
    given = tiny("a cat", seed=3, latents=noise, sampler="euler", **CALL)
    assert torch.equal(made.images, given.images)


def test_an_unknown_kind_is_refused(tiny):
    with pytest.raises(ValueError, match=r"Unknown kind of noise 'phillox': choose torch or philox\. Did you mean philox"):
        tiny("a cat", noise_kind="phillox", **CALL)
