"""Runs whose prompts change on the way, are joined, or name LoRAs."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from gen.adapters import Adapter, Delta, write_adapter
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from gen.pipeline.settings import Sampling, make_settings
from samplers.denoiser import Context
from samplers.guidance import ClassifierFree
from samplers.noise import normal
from samplers.sample import sample

CALL = {"seed": 3, "num_inference_steps": 6, "sampler": "euler", "progress": False, "output_type": "latent"}


def latents(generator: Generator, prompt, **call) -> torch.Tensor:
    return torch.stack(list(generator(prompt, **{**CALL, **call}).images))


def by_hand(generator: Generator, prompts: list[str], negatives: list[str] | None = None) -> torch.Tensor:
    """A plain run, one step at a time, each under its own prompt."""
    levels = make_settings(generator, Sampling(num_inference_steps=6, sampler="euler"), 32, 32).levels
    solver = make_settings(generator, Sampling(sampler="euler"), 32, 32).solver
    x = normal([3], (4, 8, 8), "latents") * levels[0].sigma
    for i, prompt in enumerate(prompts):
        refused = None if negatives is None else generator.encode_prompt([negatives[i]], negative=True)
        guided = ClassifierFree(generator.denoiser, 3.0, refused)
        x = sample(guided, solver, x, levels[i : i + 2], generator.encode_prompt([prompt]), context=Context())
    return x


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_prompt_changes_at_its_step(tiny):
    made = latents(tiny, "a [red:blue:0.5] heart")
    same(made, by_hand(tiny, ["a red heart"] * 3 + ["a blue heart"] * 3))
    for other in ("a [red:blue:3] heart", "a [red:blue:.5] heart", "[a red:a blue:0.5] heart"):
        assert torch.equal(latents(tiny, other), made)
    same(latents(tiny, "a [red|blue] heart"), by_hand(tiny, ["a red heart", "a blue heart"] * 3))
    same(latents(tiny, "[a cat::2]"), by_hand(tiny, ["a cat"] * 2 + [""] * 4))
    same(latents(tiny, "[a cat:2]"), by_hand(tiny, [""] * 2 + ["a cat"] * 4))
    same(latents(tiny, "[a (cat:1.5):a dog:4]"), by_hand(tiny, ["a (cat:1.5)"] * 4 + ["a dog"] * 2))


def test_negative_prompts_change_too(tiny):
    made = latents(tiny, "a heart", negative_prompt="[blurry:red:2] moon")
    same(made, by_hand(tiny, ["a heart"] * 6, ["blurry moon"] * 2 + ["red moon"] * 4))
    with_and = latents(tiny, "a heart", negative_prompt="red AND blue")  # a word there, as in AUTOMATIC1111
    assert torch.equal(with_and, latents(tiny, "a heart", negative_prompt="red AND blue", prompt_syntax="weights"))


def test_what_never_changes_is_a_plain_run(tiny):
    plain = tiny("a red heart", **CALL)
    for prompt in ("a [red:blue:1.0] heart", "a [blue:red:0] heart", "a [red|red] heart", "a red BREAK heart"):
        made = tiny(prompt, **CALL)
        assert torch.equal(made.images[0], plain.images[0]) and made.nfe == plain.nfe
        assert made.recipes[0].prompt == prompt


def test_pictures_of_a_batch_change_each_at_its_own_step(tiny):
    prompts = ["a [red:blue:0.5] heart", "a cat", "[a dog|the moon] !", "a [red:blue:2] heart", ""]
    together = tiny(prompts, **CALL).images
    for i, prompt in enumerate(prompts):
        assert torch.equal(together[i], tiny(prompt, **{**CALL, "seed": 3 + i}).images[0])


def test_the_place_of_a_change_is_a_noise_level(tiny):
    """An edit runs the last part of the schedule: what changes at half of it has its place there, not at half of the rest."""
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    edit = {"image": picture, "strength": 0.5}
    late, early = latents(tiny, "a [red:blue:0.5] heart", **edit), latents(tiny, "a [red:blue:0.8] heart", **edit)
    assert torch.equal(late, latents(tiny, "a blue heart", **edit))
    assert not torch.equal(early, late) and not torch.equal(early, latents(tiny, "a red heart", **edit))


def test_recipes_replay_what_changes(tiny):
    for prompt in ("a [red:blue:0.5] heart", "[a cat|a dog]", "a cat AND a red heart:0.5"):
        made = tiny([prompt, "a cat"], negative_prompt="[blurry::0.5]", **CALL)
        recipe = Recipe.from_json(made.recipes[0].to_json())
        assert (recipe.prompt, recipe.prompt_syntax) == (prompt, "full")
        again = tiny.replay(recipe, "latent", progress=False)
        assert torch.equal(again.images[0], made.images[0]) and again.recipes[0] == recipe


def test_recipes_from_before_read_words(tiny):
    """A recipe that says nothing of syntax was made when brackets were weights and the rest words."""
    prompt = "a [red:blue:0.5] heart"
    made = tiny(prompt, prompt_syntax="weights", **CALL)
    fields = made.recipes[0].model_dump(mode="json", exclude={"prompt_syntax"}, exclude_none=True)
    recipe = Recipe.model_validate_json(__import__("json").dumps(fields))
    assert recipe.prompt_syntax == "weights"
    assert torch.equal(tiny.replay(recipe, "latent", progress=False).images[0], made.images[0])
    assert not torch.equal(made.images[0], tiny(prompt, **CALL).images[0])


def test_joined_prompts_add_up(tiny):
    """null + scale sum_k w_k (cond_k - null), through a whole run."""
    made = tiny("a red heart AND a cat:0.5", "blurry", **CALL)
    assert made.nfe == 6 * 3
    levels = make_settings(tiny, Sampling(num_inference_steps=6, sampler="euler"), 32, 32).levels
    x = normal([3], (4, 8, 8), "latents") * levels[0].sigma
    first, second = (tiny.encode_prompt([text]) for text in ("a red heart", "a cat"))
    refused = tiny.encode_prompt(["blurry"], negative=True)
    with torch.no_grad():
        for s, t in pairwise(levels):
            one, two, null = (tiny.denoiser(x, s, c, Context()).x0 for c in (first, second, refused))
            x0 = null + 3.0 * ((one - null) + 0.5 * (two - null))
            x = x * (t.sigma / s.sigma) + (t.alpha - s.alpha * t.sigma / s.sigma) * x0  # DDIM, which Euler is here
    same(torch.stack(list(made.images)), x)
    assert torch.equal(latents(tiny, "a cat AND a cat:0"), latents(tiny, "a cat"))
    changing = latents(tiny, "a [red:blue:0.5] heart AND a cat")
    assert not torch.equal(changing, latents(tiny, "a red heart AND a cat"))


def test_joined_and_plain_prompts_of_a_call_are_batches_apart(tiny):
    prompts = ["a cat AND a dog", "a cat", "a red heart AND a dog:0.5"]
    together = tiny(prompts, **CALL)
    assert [recipe.batch.size for recipe in together.recipes] == [2, 1, 2]
    for i, prompt in enumerate(prompts):
        assert torch.equal(together.images[i], tiny(prompt, **{**CALL, "seed": 3 + i}).images[0])


def test_other_guidance_caches_and_canvases_go_with_all_of_it(tiny):
    prompt = "a [red:blue:0.5] heart AND a cat"
    for call in ({"guidance": "apg + rescale"}, {"guidance": "pag"}, {"cache": "first_block"}, {"guidance_scale": 1.0},
                 {"sampler": "heun"}, {"sampler": "dpmpp_2m_cfg_pp"}, {"guidance_interval": (-1.0, 2.0)}):  # fmt: skip
        made = tiny(prompt, **{**CALL, **call})
        assert bool(torch.stack(list(made.images)).isfinite().all())
        assert torch.equal(tiny.replay(made.recipes[0], "latent", progress=False).images[0], made.images[0]), call
    wide = tiny.panorama(prompt, width=64, height=32, **{**CALL, "output_type": "latent"})
    assert torch.equal(tiny.replay(wide.recipes[0], "latent", progress=False).images[0], wide.images[0])


def test_regions_and_views_have_prompts_that_change(tiny):
    regions = [{"prompt": "a [red:blue:0.5] heart", "box": [0, 0, 1, 1], "negative_prompt": "[blurry::0.5]"}]
    made = tiny.layout({"regions": regions}, **CALL)
    same(torch.stack(list(made.images)), by_hand(tiny, ["a red heart"] * 3 + ["a blue heart"] * 3, ["blurry"] * 3 + [""] * 3))
    assert made.recipes[0].layout.regions[0].prompt == "a [red:blue:0.5] heart"
    assert torch.equal(tiny.replay(made.recipes[0], "latent", progress=False).images[0], made.images[0])
    one = {"regions": [{"prompt": "a cat AND a dog", "box": [0, 0, 1, 1]}]}
    with pytest.raises(ValueError, match="AND joins prompts of a whole picture"):
        tiny.layout(one, **CALL)
    views = tiny.ambiguous("a [cat:dog:0.5]", "the moon", **{**CALL, "pixels_from": 20})
    plain = tiny.ambiguous("a cat", "the moon", **{**CALL, "pixels_from": 20})
    assert not torch.equal(views.images[0], plain.images[0])


def test_what_cannot_be_followed_is_said_before_the_run(tiny):
    with pytest.raises(ValueError, match="chooses its own steps, so prompts change after a share"):
        tiny("[a cat|a dog]", **{**CALL, "sampler": "dpm_adaptive"})
    with pytest.raises(ValueError, match="at most 16 go together"):
        tiny(" AND ".join(["a cat"] * 17), **CALL)
    with pytest.raises(ValueError, match="prompt_syntax is 'comfy'; give 'full', or 'weights'"):
        tiny("a cat", prompt_syntax="comfy", **CALL)
    with pytest.raises(ValueError, match=r"does not go with training_free"):
        tiny("a red cat AND a dog", concepts=["cat"], **CALL)
    share = latents(tiny, "a [red:blue:0.5] heart", sampler="dpm_adaptive")
    red, blue = (latents(tiny, f"a {colour} heart", sampler="dpm_adaptive") for colour in ("red", "blue"))
    assert not torch.equal(share, red) and not torch.equal(share, blue)


# ---- LoRAs in prompts ----


def delta(seed: int, out: int, width: int) -> Delta:
    random = torch.Generator().manual_seed(seed)
    return Delta({"down": torch.randn(2, width, generator=random) / 2, "up": torch.randn(out, 2, generator=random) / 2}, 2.0)


@pytest.fixture
def folder(tmp_path):
    style = {"denoiser.mid_block.attn.to_q": delta(0, 32, 32), "text_encoder.layers.0.up": delta(1, 32, 16)}
    (tmp_path / "loras" / "below").mkdir(parents=True)
    write_adapter(Adapter("style", style), tmp_path / "loras" / "style.safetensors", "diffusers")
    other = {"denoiser.in_blocks.0.mlp.fc1": delta(2, 128, 32)}
    write_adapter(Adapter("other", other), tmp_path / "loras" / "below" / "other.safetensors", "kohya")
    return tmp_path / "loras"


@pytest.fixture
def generator(tiny_model) -> Generator:
    return Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")


def test_a_prompt_puts_a_lora_in_force(generator, folder):
    plain = latents(generator, "a red heart")
    named = latents(generator, "a red heart <lora:style:0.5>", lora_dir=folder)
    assert generator.adapters == {} and list(generator.loaded_adapters.loaded) == ["style"]
    generator.set_adapters({"style": 0.5})
    loaded = latents(generator, "a red heart ")
    assert torch.equal(named, loaded) and not torch.equal(named, plain)
    assert torch.equal(latents(generator, "a red heart <lora:style:0>"), latents(generator, "a red heart <lora:style:0.0>"))
    generator.set_adapters({"style": 2.0})  # the prompt's own weight counts
    assert torch.equal(latents(generator, "a red heart <lora:style:0.5>"), named)


def test_pictures_of_a_call_name_different_loras(generator, folder):
    prompts = ["a cat <lora:style:0.5>", "a cat", "a dog<lora:other:1><lora:style:0.25>"]
    together = generator(prompts, lora_dir=folder, **CALL)
    for i, prompt in enumerate(prompts):
        alone = generator(prompt, **{**CALL, "seed": 3 + i})
        assert torch.equal(together.images[i], alone.images[0])
        recipe = Recipe.from_json(together.recipes[i].to_json())
        assert recipe.prompt == prompt and not recipe.unrecorded
        assert torch.equal(generator.replay(recipe, "latent", progress=False).images[0], together.images[i])


def test_a_lora_comes_and_goes_with_its_words(generator, folder):
    """Its weights, and what it makes of the text, act where the prompt has it."""
    made = generator("[<lora:style:1>a cat:a dog:0.5]", lora_dir=folder, **CALL)
    levels = make_settings(generator, Sampling(num_inference_steps=6, sampler="euler"), 32, 32).levels
    solver, x = get_solver_of(generator), normal([3], (4, 8, 8), "latents") * levels[0].sigma
    for begin, prompt, adapters in ((0, "a cat", {"style": 1.0}), (3, "a dog", {})):
        condition = generator.encode_prompt([prompt], adapters)
        guided = ClassifierFree(generator.denoiser, 3.0)
        x = sample(guided, solver, x, levels[begin : begin + 4], condition, context=Context(adapters=adapters))
    same(torch.stack(list(made.images)), x)
    assert torch.equal(generator.replay(made.recipes[0], "latent", progress=False).images[0], made.images[0])
    with pytest.raises(ValueError, match="some that come or go"):
        generator("[<lora:style:1>a::0.5] cat <lora:other:1>", composition="switch", lora_dir=folder, **CALL)
    composed = generator("a cat <lora:style:1> <lora:other:1>", composition="switch", **CALL)
    assert torch.equal(generator.replay(composed.recipes[0], "latent", progress=False).images[0], composed.images[0])


def get_solver_of(generator):
    return make_settings(generator, Sampling(sampler="euler"), 32, 32).solver


def test_a_name_is_never_a_path(generator, folder, tmp_path):
    outside = replace(Adapter("x", {"denoiser.mid_block.attn.to_q": delta(0, 32, 32)}))
    write_adapter(outside, tmp_path / "outside.safetensors", "kohya")
    for name in ("../outside", "below/other", str(tmp_path / "outside.safetensors"), "outside", "sty", ""):
        with pytest.raises(ValueError, match=r"The prompt names the LoRA|write a LoRA as"):
            generator(f"a cat <lora:{name}:1>", lora_dir=folder, **CALL)
    with pytest.raises(ValueError, match="Did you mean 'style'"):
        generator("a cat <lora:stlye:1>", lora_dir=folder, **CALL)
    with pytest.raises(ValueError, match="none is loaded; load it"):
        generator("a cat <lora:style:1>", **CALL)
    with pytest.raises(ValueError, match="which is not a folder"):
        generator("a cat <lora:style:1>", lora_dir=tmp_path / "none", **CALL)
    write_adapter(outside, folder / "below" / "style.safetensors", "kohya")
    with pytest.raises(ValueError, match="two files named 'style'"):
        generator("a cat <lora:style:1>", lora_dir=folder, **CALL)
    with pytest.raises(ValueError, match="LoRAs are named in prompts alone"):
        generator("a cat", negative_prompt="<lora:style:1>", **CALL)


def test_the_command_line_reads_it_all(image, fewstep, folder, tiny_model):
    prompt = "a [red:blue:0.5] heart AND a cat <lora:style:0.5>"
    code, _, err = image(prompt, "--seed", 1, "-o", "a.png", "--lora-dir", folder, "--steps", 2)
    assert code == 0, err
    recipe = read_recipe("a.png")
    assert recipe.prompt == prompt and recipe.adapters == {"style": 0.5}
    again = ["replay", "a.png", "--model", tiny_model, "--lora", folder / "style.safetensors"]
    assert fewstep(*again)[0] == 0
    code, _, err = image("a <lora:none:1> cat", "--seed", 1)
    assert code == 2 and "--lora-dir" in err
    assert image("[a|b]", "--seed", 1, "-o", "b.png", "--prompt-syntax", "weights")[0] == 0
    assert read_recipe("b.png").prompt_syntax == "weights"


@pytest.mark.parametrize("name", ["stable_diffusion", "sd3"])
def test_diffusers_models_read_it_too(bridged, name):
    _, generator = bridged(name)
    call = {**CALL, "num_inference_steps": 2}
    red, blue = latents(generator, "a red cat", **call), latents(generator, "a blue cat", **call)
    made = latents(generator, "a [red:blue:0.5] cat", **call)
    assert torch.equal(latents(generator, "a [red:blue:1.0] cat", **call), red)
    assert (made - red).abs().max() > 1e-4 and (made - blue).abs().max() > 1e-4
    apart, joined = latents(generator, "a cat BREAK a dog", **call), latents(generator, "a cat a dog", **call)
    assert torch.equal(apart, joined) == (name == "sd3")  # CLIP in chunks begins one there, one sentence is read in one piece
