"""Guidance and caches by name: what a call builds, what its recipe holds, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gen.pipeline.guidance_stack import GuidanceStack
from gen.pipeline.recipe import Recipe
from samplers.cache import Reuse
from samplers.cache.registry import CACHES
from samplers.denoiser import Condition, Context
from samplers.guidance import AdaptiveProjected, CFGPlusPlus, ClassifierFree, PerturbedAttention, Rescale
from samplers.noise import normal
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

PROMPTS = ["a red heart", "", "a cat"]


def pixels(generator, *args, **kwargs) -> torch.Tensor:
    return generator(*args, output_type="latent", progress=False, **kwargs).images


def by_hand(generator, wrap, solver="dpmpp_2m", prompt="a red heart"):
    """The latents of seed 7 with the field that `wrap` makes of the denoiser and the solver."""
    tokens, mask = generator.text_encoder.encode([prompt])
    levels = get_grid("uniform", RectifiedFlow(), 5)
    field, solver = wrap(generator.denoiser, get_solver(solver))
    x = normal([7], (4, 8, 8), "latents") * levels[0].sigma
    with torch.no_grad():
        return sample(field, solver, x, levels, Condition(tokens=tokens, mask=mask), context=Context())


CASES = {
    "apg": ({"guidance": "apg", "guidance_options": {"momentum": -0.5}},
            lambda d, s: (AdaptiveProjected(d, 2.5, momentum=-0.5), s)),
    "apg + rescale": ({"guidance": "apg + rescale", "guidance_options": {"factor": 0.4}},
                      lambda d, s: (Rescale(AdaptiveProjected(d, 2.5), 0.4), s)),
    "rescale alone goes around cfg": ({"guidance": "rescale"}, lambda d, s: (Rescale(ClassifierFree(d, 2.5)), s)),
    "cfg++": ({"guidance": "cfg++"}, lambda d, s: (ClassifierFree(d, 2.5, keep_both=True), CFGPlusPlus(s))),
    "a sampler under CFG++": ({"sampler": "euler_cfg_pp"},
                              lambda d, s: (ClassifierFree(d, 2.5, keep_both=True), get_solver("euler_cfg_pp"))),
    "pag": ({"guidance": "pag", "guidance_options": {"layers": [1], "perturbed_scale": 2}},
            lambda d, s: (PerturbedAttention(ClassifierFree(d, 2.5), 2.0, (1,), base=d), s)),
    "interval": ({"guidance": "apg", "guidance_interval": (-1.0, 1.0)},
                 lambda d, s: (AdaptiveProjected(d, 2.5, interval=(-1.0, 1.0)), s)),
    "cache": ({"cache": "reuse", "cache_options": {"stride": 2}}, lambda d, s: (ClassifierFree(Reuse(d, stride=2), 2.5), s)),
    "two caches": ({"cache": "pyramid + first_block", "cache_options": {"threshold": 0.3}}, None),
}  # fmt: skip


@pytest.mark.parametrize("guidance", ["cfg", "apg", "cfg_zero", "rescale", "cfg++"])
def test_a_scale_of_0_is_off(tiny, guidance):
    """As diffusers means it: the picture of its prompt, one evaluation a step; never the one without a prompt."""
    call = {"seed": 7, "guidance": guidance, "output_type": "latent", "progress": False}
    made = tiny("a red heart", guidance_scale=0, **call)
    assert torch.equal(made.images, tiny("a red heart", guidance_scale=0.0 if guidance == "cfg++" else 1.0, **call).images)
    assert not torch.allclose(made.images, tiny("", guidance_scale=0, **call).images)
    assert made.recipes[0].nfe == 4 and torch.equal(tiny.replay(made.recipes[0], "latent", False).images, made.images)


def test_a_recipe_with_0_is_made_as_it_was(tiny):
    """Recipes say what was computed; those with 0 are older than this meaning of it, and show no prompt."""
    recipe = tiny("a red heart", seed=7, progress=False).recipes[0].model_copy(update={"guidance_scale": 0.0})
    again = tiny.replay(recipe, "latent", False).images
    torch.testing.assert_close(again, tiny("", seed=7, output_type="latent", progress=False).images, rtol=0, atol=1e-5)


def test_a_model_that_reads_its_scale_is_told_0():
    assert GuidanceStack.of("embedded", None, None, None).effective_scale(0.0) == 0.0
    assert [GuidanceStack.of(name, None, None, None).effective_scale(0.0) for name in ("cfg", "apg", "cfg++")] == [
        1.0,
        1.0,
        0.0,
    ]


@pytest.mark.parametrize("case", CASES)
def test_a_call_is_the_stack_built_by_hand(tiny, case):
    asked, wrap = CASES[case]
    call = {"num_inference_steps": 5, "guidance_scale": 2.5, "output_type": "latent", "progress": False}
    made = tiny(["a red heart"], seed=7, batch_invariant=False, **call, **asked)  # by the kernels of a run by hand
    plain = by_hand(tiny, lambda d, s: (ClassifierFree(d, 2.5), s))
    assert not torch.allclose(made.images, plain, atol=1e-3)  # each of them changes something
    if wrap is not None:
        torch.testing.assert_close(made.images, by_hand(tiny, wrap), rtol=0, atol=1e-6)
    [recipe] = made.recipes
    again = tiny.replay(Recipe.from_json(recipe.to_json()), output_type="latent", progress=False)
    assert torch.equal(again.images, made.images) and again.recipes[0] == recipe


@pytest.mark.parametrize("asked", [{"guidance": "apg + rescale"}, {"guidance": "cfg++"}, {"cache": "first_block"}])
def test_rows_without_a_prompt_stay_unguided(tiny, asked):
    together = pixels(tiny, PROMPTS, seeds=[1, 2, 3], **asked)
    alone = pixels(tiny, "", seed=2, **({} if "guidance" in asked else asked))
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_perturbations_need_no_prompt(tiny):
    options = {"layers": 1, "perturbed_scale": 4.0}
    perturbed = pixels(tiny, "", seed=2, guidance="pag + rescale", guidance_options=options)
    assert not torch.allclose(perturbed, pixels(tiny, "", seed=2), atol=1e-3)


def test_cfgpp_has_a_scale_of_its_own(tiny):
    made = tiny("a cat", seed=1, guidance="cfg++", progress=False)
    assert made.recipes[0].guidance_scale == 0.6 and made.recipes[0].nfe == 8
    assert tiny("a cat", seed=1, guidance="cfg++", guidance_scale=0, progress=False).recipes[0].nfe == 4
    with pytest.warns(UserWarning, match="no effect at guidance_scale 0;"):
        tiny("a cat", "a dog", seed=1, guidance="cfg++", guidance_scale=0, progress=False)


@pytest.mark.parametrize("sampler", ["dpmpp_2m_cfg_pp", "euler_cfg_pp"])
def test_a_sampler_under_cfgpp_has_its_scales(tiny, sampler):
    """0.6 where none is said, both branches at every scale but 0, and no other rule beside it."""
    made = tiny("a cat", seed=1, sampler=sampler, progress=False)
    assert made.recipes[0].guidance_scale == 0.6 and made.recipes[0].nfe == 8
    assert tiny("a cat", seed=1, sampler=sampler, guidance_scale=1.0, progress=False).recipes[0].nfe == 8
    assert tiny("a cat", seed=1, sampler=sampler, guidance_scale=0, progress=False).recipes[0].nfe == 4
    again = tiny.replay(Recipe.from_json(made.recipes[0].to_json()), progress=False)
    assert again.recipes[0] == made.recipes[0]
    with pytest.raises(ValueError, match="choose another sampler"):
        tiny("a cat", sampler=sampler, guidance="apg", progress=False)
    with pytest.raises(ValueError, match="moves the whole picture"):
        picture = np.zeros((16, 16, 3), np.uint8)
        tiny("a cat", sampler=sampler, image=picture, mask=picture[..., 0], progress=False)


def test_no_cache_looks_at_the_pictures_beside_one(tiny):
    for cache in CACHES:
        for recipe in tiny(["a cat", "a dog"], seed=1, cache=cache, batch_size=2, progress=False).recipes:
            assert not recipe.unrecorded


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"guidance": "apgg"}, "Unknown guidance 'apgg': did you mean 'apg'"),
        ({"guidance": "rescale + apg"}, "name one rule, then modifiers"),
        ({"guidance": "apg + cfg"}, "name one rule, then modifiers"),
        ({"guidance": 3}, "give a name, or several with \\+ between"),
        ({"guidance": "pag", "guidance_options": {"layers": 9}}, "the network has blocks 0 to"),
        ({"guidance": "pag", "guidance_options": {"layers": "x"}}, "give the numbers of the blocks"),
        ({"guidance": "apg", "guidance_options": {"scale": 3}}, "given by guidance_scale itself"),
        ({"guidance": "apg", "guidance_options": {"eta2": 3}}, "apg takes eta, momentum, threshold"),
        ({"guidance": "apg", "guidance_options": {"eta": [1, "x"]}}, "give a finite number, several"),
        ({"guidance": "apg", "guidance_options": {"momentum": float("nan")}}, "give a finite number"),
        ({"guidance": "rescale", "guidance_options": {"factor": 2}}, "must lie between 0 \\(off\\) and 1"),
        ({"guidance": "autoguidance"}, "Autoguidance needs a weaker model"),
        ({"cache": "taylr"}, "Unknown cache 'taylr': did you mean 'taylor'"),
        ({"cache": "taylor", "cache_options": {"stride": 0}}, "stride must be a whole number of at least 1"),
        ({"cache_options": {"stride": 2}}, "no cache takes none"),
    ],
)
def test_refusals(tiny, asked, message):
    with pytest.raises(ValueError, match=message):
        tiny("a cat", seed=1, progress=False, **asked)


def test_a_models_own_guidance_is_the_default(tiny_model, tmp_path):
    import json
    import shutil

    from gen.generator import Generator

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["defaults"] |= {"guidance": "apg", "guidance_options": {"momentum": -0.5}}
    (folder / "config.json").write_text(json.dumps(config))
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    recipe = generator("a cat", seed=1, progress=False).recipes[0]
    assert (recipe.guidance, recipe.guidance_options) == ("apg", {"momentum": -0.5})
    recipe = generator("a cat", seed=1, guidance="cfg", progress=False).recipes[0]
    assert (recipe.guidance, recipe.guidance_options) == ("cfg", {})


def test_a_cache_by_another_name():
    assert GuidanceStack.of("CFG", {}, "fbcache", {}).cache == ("first_block",)
