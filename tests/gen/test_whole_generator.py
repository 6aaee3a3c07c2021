"""`Generator.from_pipeline`: calls, recipes, guidance of ours, and what cannot be done with a pipeline as a whole."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image

from gen.generator import Generator
from gen.models.bridge.generic.call import PipelineCall
from gen.pipeline.recipe import Recipe
from samplers.registry import get_grid
from tests.gen.pipelines import SIZE, latent_consistency, sdxl, stable_diffusion
from tests.gen.whole_pipelines import bria, mask, numbers, opened, picture

CALL = {"num_inference_steps": 4, "progress": False, "height": SIZE, "width": SIZE}
CLOSE = {"atol": 1e-4, "rtol": 0}


@cache
def sd() -> Any:
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def generator() -> Generator:
    return Generator.from_pipeline(sd())


def pixels(generator: Generator, **call: Any) -> torch.Tensor:
    seed = {} if "seeds" in call else {"seed": 7}
    return generator(**{**CALL, "output_type": "pt", "prompt": "a red heart", **seed, **call}).images


@pytest.mark.parametrize("build", [stable_diffusion, sdxl, bria])
def test_our_guidance_over_two_rows_is_the_pipelines_own(build):
    """Classifier-free guidance of ours, the pipeline's off, with a negative prompt: the same picture, as many evaluations."""
    pipe = build()
    pipe = pipe[0] if isinstance(pipe, tuple) else pipe
    pipe.set_progress_bar_config(disable=True)
    generator = Generator.from_pipeline(pipe)
    call = {**CALL, "prompt": "a red heart", "negative_prompt": "blurry", "guidance_scale": 4.0, "output_type": "pt", "seed": 7}
    own, ours = generator(**call), generator(**call, guidance="cfg")
    torch.testing.assert_close(ours.images, own.images, **CLOSE)
    assert (own.nfe, ours.nfe) == (8, 8)
    assert (generator(**{**call, "guidance_scale": 1.0}, guidance="cfg").images - own.images).abs().max() > 0.01
    assert (
        generator(**call, guidance="apg + rescale", guidance_options={"momentum": -0.5}).images - own.images
    ).abs().max() > 1e-3


def test_guidance_in_an_interval_spares_nothing_but_is_followed(generator):
    """Outside it the picture is the unguided one's; the pipeline's batch stays as it is."""
    none = pixels(generator, guidance="cfg", guidance_scale=1.0)
    everywhere = pixels(generator, guidance="cfg", guidance_scale=6.0)
    nowhere = pixels(generator, guidance="cfg", guidance_scale=6.0, guidance_interval=(50.0, 60.0))
    some = pixels(generator, guidance="cfg", guidance_scale=6.0, guidance_interval=(-1.0, 60.0))
    torch.testing.assert_close(nowhere, none, **CLOSE)
    assert min((some - none).abs().max(), (some - everywhere).abs().max()) > 1e-3


def test_a_picture_does_not_depend_on_its_batch(generator):
    together = pixels(generator, prompt=["a cat", "a dog", "a red heart"], seeds=[1, 2, 3], batch_size=3)
    alone = torch.cat([pixels(generator, prompt=p, seed=s) for p, s in (("a cat", 1), ("a dog", 2), ("a red heart", 3))])
    torch.testing.assert_close(together, alone, **CLOSE)
    ours = pixels(generator, prompt=["a cat", "a dog", "a red heart"], seeds=[1, 2, 3], batch_size=3, guidance="cfg")
    torch.testing.assert_close(ours, alone, **CLOSE)


def test_seeds_are_the_pipelines_generators(generator):
    """Several to a prompt too."""
    found = generator(**CALL, prompt="a cat", num_images_per_prompt=2, seed=5, batch_size=2, output_type="np").images
    sources = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    sides = {"height": SIZE, "width": SIZE}
    reference = sd()(["a cat"] * 2, generator=sources, num_inference_steps=4, output_type="np", **sides).images
    assert abs(found - reference).max() < 1e-4


@pytest.mark.parametrize(
    "options", [{"sampler": "euler_a"}, {"sampler": "dpmpp_sde"}, {"cache": "reuse"}, {"schedule": "karras"}]
)
def test_a_recipe_makes_the_picture_again(generator, options):
    """To the last bit, with what a recipe cannot hold of an object named in it."""
    made = generator(**CALL, prompt="a cat", negative_prompt="blurry", seed=9, guidance_scale=3.0, **options)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert recipe.pipeline.name == "StableDiffusionPipeline" and recipe.unrecorded == ("pipeline object",)
    assert (recipe.height, recipe.width, recipe.machine.attention) == (SIZE, SIZE, "diffusers")
    again = generator.replay(recipe, progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes()
    assert again.recipes[0].to_json() == recipe.to_json()


def test_a_recipe_knows_the_pictures_of_an_edit(tmp_path):
    pipe, _ = opened("sd_inpaint")
    generator, image = Generator.from_pipeline(pipe), tmp_path / "start.png"
    picture().save(image)
    call = {**CALL, "prompt": "a cat", "seed": 4, "image": image, "mask": mask(), "strength": 0.75}
    made = generator(**call)
    recipe = made.recipes[0]
    assert set(recipe.pipeline.pictures) == {"image", "mask_image"} and recipe.pipeline.options == {"strength": 0.75}
    assert recipe.unrecorded == ("pipeline object",)
    again = generator.replay(recipe, progress=False, image=picture(), mask=mask())
    assert again.images[0].tobytes() == made.images[0].tobytes()
    with pytest.raises(ValueError, match="made with a picture as mask_image, which is not in its recipe"):
        generator.replay(recipe, progress=False, image=picture())
    with pytest.raises(ValueError, match="image, which is not the one that it was made with"):
        generator.replay(recipe, progress=False, image=picture(1), mask=mask())
    hostile = recipe.model_copy(update={"pipeline": recipe.pipeline.model_copy(update={"options": {"image": str(image)}})})
    with pytest.raises(ValueError, match="names a file as a picture"):
        generator.replay(hostile, progress=False, mask=mask())


def test_callbacks_previews_and_interrupts(generator):
    """A callback sees latents and clean estimates, may change them, and ends the call early with what there is."""
    seen = []

    def watch(model, step, t, tensors):
        seen.append((step, tensors["denoised"].shape, model.preview(tensors["denoised"])[0].size))

    plain = pixels(generator)
    names = ("latents", "denoised")
    watched = pixels(generator, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert torch.equal(plain, watched)
    assert seen == [(i, (1, 4, SIZE // 2, SIZE // 2), (SIZE // 2, SIZE // 2)) for i in range(4)]

    def stop(model, step, t, tensors):
        model.interrupt = step == 1

    early = generator(**CALL, prompt="a red heart", seed=7, callback_on_step_end=stop, output_type="pt")
    assert early.interrupted and early.recipes[0].stopped_at == 2 and early.nfe == 4
    assert (early.images - plain).abs().max() > 1e-3
    again = generator.replay(early.recipes[0], output_type="pt", progress=False)
    assert torch.equal(again.images, early.images)

    def dim(model, step, t, tensors):
        return {"latents": 0.5 * tensors["latents"]}

    changed = generator(**CALL, prompt="a red heart", seed=7, callback_on_step_end=dim, output_type="pt")
    assert (changed.images - plain).abs().max() > 0.01 and "callback edits" in changed.recipes[0].unrecorded


def test_previews_of_packed_latents_have_the_pictures_shape():
    pipe, call = opened("flux_image_to_image")
    generator, seen = Generator.from_pipeline(pipe), []

    def watch(model, step, t, tensors):
        seen.append(model.preview(tensors["denoised"])[0].size)

    keywords = {"num_inference_steps": 2, "height": 2 * SIZE, "width": SIZE, "progress": False, "strength": 1.0}
    inputs = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ("denoised",)}
    made = generator("a cat", image=call["image"], pipeline_options={"max_sequence_length": 16}, **keywords, **inputs)
    assert seen == [(SIZE // 2, SIZE)] * 2 and made.images[0].size == (SIZE, 2 * SIZE)
    with pytest.raises(ValueError, match="layout of its own"):
        generator.preview(torch.zeros(1, 5, 7))


def test_latents_are_the_pipelines_own(generator):
    latents = torch.randn(1, 4, SIZE // 2, SIZE // 2, generator=torch.Generator().manual_seed(7))
    made = generator(**CALL, prompt="a red heart", latents=latents, output_type="pt")
    torch.testing.assert_close(made.images, pixels(generator), **CLOSE)
    assert "latents" in made.recipes[0].unrecorded
    out = generator(**CALL, prompt="a red heart", seed=7, output_type="latent")
    assert out.images.shape == latents.shape


REFUSED = {
    "layout": ({"layout": [{"prompt": "a cat", "box": (0, 0, 16, 16)}]}, "takes no layout: prompts by region"),
    "control": ({"control": Image.new("RGB", (8, 8))}, "takes no control: a ControlNet is part of a pipeline made for it"),
    "prompt_syntax": ({"prompt_syntax": "full"}, "takes no prompt_syntax: the pipeline reads its prompts itself"),
    "noise_kind": ({"noise_kind": "philox"}, "takes no noise_kind: the pipeline draws its noise itself"),
    "guide": ({"guide": "brightness"}, "takes no guide: guidance by an energy needs the network's gradients"),
    "negtome": ({"negtome": True}, "takes no negtome: it changes the inside"),
    "composition": ({"composition": "switch"}, "its adapters are the pipeline's own"),
    "batch_invariant": ({"batch_invariant": True}, "its kernels are not ours"),
    "class_labels": ({"class_labels": [3]}, "takes no class_labels"),
    "bins": ({"use_resolution_binning": True}, "the pipeline chooses its sizes"),
    "pag": ({"guidance": "pag"}, "takes no guidance 'pag': it changes the inside"),
    "cache": ({"cache": "first_block"}, "takes no cache 'first_block'.*Choose reuse or easy"),
    "image": ({"image": Image.new("RGB", (8, 8))}, "takes no image; a pipeline of the same model that does"),
    "flow_map": ({"sampler": "flow_map"}, "tells the network where a step ends"),
    "cfg++": ({"sampler": "euler_cfg_pp"}, "keeps to itself; say guidance='cfg'"),
    "interval": ({"guidance_interval": (0.0, 1.0)}, "own guidance has no interval"),
    "unknown option": ({"pipeline_options": {"clip_skips": 1}}, "takes no 'clip_skips'. Did you mean 'clip_skip'"),
    "given elsewhere": ({"pipeline_options": {"num_inference_steps": 3}}, "is given by num_inference_steps="),
    "cannot be followed": ({"pipeline_options": {"return_dict": False}}, "cannot be followed"),
    "unknown keyword": ({"guidence": "cfg"}, "did you mean 'guidance'"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_a_whole_pipeline_cannot_do_is_refused_with_the_reason(generator, name):
    call, reason = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=reason):
        generator(**{**CALL, "prompt": "a cat", "seed": 1, **call})


def test_tasks_and_files_are_refused_with_the_reason(generator, tmp_path, tiny):
    with pytest.raises(ValueError, match="canvas cannot be made with it"):
        generator.panorama("a cat", width=64, height=32, window=32)
    with pytest.raises(ValueError, match="canvas cannot be made with it"):
        generator.outpaint(picture(), "a cat", left=32, window=32)
    with pytest.raises(ValueError, match="canvas cannot be made with it"):
        generator.upscale(picture(), "a cat", window=32)
    with pytest.raises(ValueError, match="restoration cannot be made with it"):
        generator.restore("deblur", picture(), prompt="a cat")
    with pytest.raises(ValueError, match="views cannot be made with it"):
        generator.ambiguous("a cat", "a dog")
    with pytest.raises(ValueError, match="load_lora_weights"):
        generator.load_adapter(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="own save_pretrained"):
        generator.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="runs only as a whole"):
        generator.network(torch.zeros(1), torch.zeros(1), None, None)
    with pytest.raises(ValueError, match="pipeline_options are for a pipeline that runs as a whole"):
        tiny("a red heart", progress=False, pipeline_options={"clip_skip": 1})
    recipe = generator(**CALL, prompt="a cat", seed=1).recipes[0]
    with pytest.raises(ValueError, match="StableDiffusionPipeline as a whole; open that pipeline"):
        tiny.replay(recipe, progress=False)
    other = recipe.model_copy(update={"pipeline": recipe.pipeline.model_copy(update={"name": "OtherPipeline"})})
    with pytest.raises(ValueError, match="made by OtherPipeline, and this is StableDiffusionPipeline"):
        generator.replay(other, progress=False)


def test_schedulers_and_objects_that_cannot_be_followed_are_refused():
    pipe = stable_diffusion()
    from diffusers import DDIMScheduler, KarrasVeScheduler, SCMScheduler

    pipe.scheduler = KarrasVeScheduler()
    with pytest.raises(ValueError, match="scheduler of this StableDiffusionPipeline cannot be followed"):
        Generator.from_pipeline(pipe)
    pipe.scheduler = DDIMScheduler(clip_sample=False, thresholding=True)
    with pytest.raises(ValueError, match="thresholding"):
        Generator.from_pipeline(pipe)
    pipe.scheduler = SCMScheduler()
    with pytest.raises(ValueError, match="SCMScheduler, has noise that only models opened natively have"):
        Generator.from_pipeline(pipe)
    with pytest.raises(ValueError, match="has no scheduler"):
        Generator.from_pipeline(torch.nn.Linear(1, 1))


def test_options_reach_the_pipeline(generator):
    """Plain ones go into the recipe, others are named there."""
    made = generator(**CALL, prompt="a red heart", seed=7, output_type="pt", pipeline_options={"guidance_rescale": 0.7})
    assert (made.images - pixels(generator)).abs().max() > 1e-3
    assert made.recipes[0].pipeline.options == {"guidance_rescale": 0.7}
    kwargs = {"cross_attention_kwargs": {"scale": 0.5}}
    made = generator(**CALL, prompt="a cat", seed=1, pipeline_options=kwargs)
    assert "pipeline option cross_attention_kwargs" in made.recipes[0].unrecorded


def test_a_pipeline_is_as_it_was_after_a_call():
    pipe = stable_diffusion()
    before, config = pipe.scheduler, copy.deepcopy(dict(pipe.config))
    hooks = len(pipe.unet._forward_pre_hooks)
    generator = Generator.from_pipeline(pipe)
    first = pipe("a cat", generator=torch.Generator().manual_seed(1), num_inference_steps=2, output_type="np").images
    shown = vars(pipe)["_progress_bar_config"]
    generator("a cat", num_inference_steps=3, sampler="heun", seed=1, progress=False)
    assert pipe.scheduler is before and dict(pipe.config) == config and len(pipe.unet._forward_pre_hooks) == hooks
    assert vars(pipe)["_progress_bar_config"] == shown
    after = pipe("a cat", generator=torch.Generator().manual_seed(1), num_inference_steps=2, output_type="np").images
    assert (first == after).all()


def test_keywords_of_prompts_are_the_pipelines_own():
    """prompt_2 and the sizes that SDXL is told, as keywords of a call; recorded, and refused where a pipeline has none."""
    pipe = sdxl()
    pipe.set_progress_bar_config(disable=True)
    generator = Generator.from_pipeline(pipe)
    own = {"prompt_2": "a dog", "original_size": (64, 48), "target_size": (32, 32)}
    sides = {"height": SIZE, "width": SIZE}
    source = torch.Generator().manual_seed(7)
    reference = pipe("a red heart", generator=source, num_inference_steps=4, output_type="np", **own, **sides).images
    made = generator(**CALL, prompt="a red heart", seed=7, output_type="np", **own)
    assert abs(made.images - reference).max() < 1e-4
    assert made.recipes[0].pipeline.options == own
    again = generator.replay(made.recipes[0], output_type="np", progress=False)
    assert (again.images == made.images).all()
    with pytest.raises(ValueError, match="takes no prompt_2"):
        Generator.from_pipeline(sd())(**CALL, prompt="a cat", prompt_2="a dog")


def ip_adapter(network: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter for a U-Net whose picture features have the width of its text features."""
    draw, width = torch.Generator().manual_seed(1), network.config.cross_attention_dim
    cross = [name for name in network.attn_processors if name.endswith("attn2.processor")]
    weights = {}
    for number, name in enumerate(cross):
        hidden = network.get_submodule(name.removesuffix(".processor")).to_k.out_features
        weights |= {f"{2 * number + 1}.to_{part}_ip.weight": torch.randn(hidden, width, generator=draw) for part in "kv"}
    proj = {"proj.weight": torch.randn(4 * width, width, generator=draw), "proj.bias": torch.zeros(4 * width)}
    return {"image_proj": {**proj, "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}, "ip_adapter": weights}


def test_an_ip_adapter_of_the_pipeline_acts():
    """Its picture's features reach the network as in the pipeline's own call; its scale is the pipeline's."""
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet._load_ip_adapter_weights([ip_adapter(pipe.unet)])
    pipe.set_ip_adapter_scale(0.7)
    options = {"ip_adapter_image_embeds": [numbers(2, 1, 16)]}  # of no picture, and of one
    source, sides = torch.Generator().manual_seed(7), {"height": SIZE, "width": SIZE}
    own = pipe("a red heart", generator=source, num_inference_steps=4, output_type="np", **options, **sides).images
    made = Generator.from_pipeline(pipe)(**CALL, prompt="a red heart", seed=7, output_type="np", pipeline_options=options)
    assert abs(made.images - own).max() < 1e-4
    pipe.set_ip_adapter_scale(0.0)
    without = Generator.from_pipeline(pipe)(**CALL, prompt="a red heart", seed=7, output_type="np", pipeline_options=options)
    assert abs(made.images - without.images).max() > 1e-3
    assert "pipeline option ip_adapter_image_embeds" in made.recipes[0].unrecorded


def test_adapters_of_the_pipeline_act():
    """A LoRA that the pipeline has loaded, as in its own call."""
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    plain = pixels(Generator.from_pipeline(pipe))
    draw = torch.Generator().manual_seed(0)
    layer = "unet.up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = pipe.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.in_features
    factors = {"lora.down.weight": (2, width), "lora.up.weight": (width, 2)}
    pipe.load_lora_weights({f"{layer}.{name}": torch.randn(*shape, generator=draw) for name, shape in factors.items()})
    changed = pixels(Generator.from_pipeline(pipe))
    sides = {"height": SIZE, "width": SIZE}
    source = torch.Generator().manual_seed(7)
    own = pipe("a red heart", generator=source, num_inference_steps=4, output_type="np", **sides).images
    torch.testing.assert_close(changed, torch.from_numpy(own).movedim(-1, 1), **CLOSE)
    assert (changed - plain).abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_guidance_of_ours_is_that_of_the_native_model(bridged, sampler):
    """The same pipeline opened natively: the same picture from the same noise, under CFG++ too."""
    pipe, native = bridged("stable_diffusion")
    noise = numbers(1, 4, SIZE // 2, SIZE // 2)
    call = {**CALL, "prompt": "a red heart", "negative_prompt": "blurry", "guidance_scale": 1.5, "output_type": "pt"}
    expected = native(**call, sampler=sampler, latents=noise, seed=1).images
    levels = get_grid("scheduler", native.denoiser.path, 4, **native.config.defaults.schedule_options)
    whole = Generator.from_pipeline(pipe)
    found = whole(**call, sampler=sampler, guidance="cfg", latents=noise * levels[0].sigma, seed=1).images
    torch.testing.assert_close(found, expected, **CLOSE)


def test_guidance_and_caches_of_the_callers_own(generator):
    """Functions in the place of names, as for any model; recipes say that they were there."""
    from samplers.cache.reuse import Reuse
    from samplers.guidance.cfg import ClassifierFree

    def own(denoiser, scale, negative, interval):
        return ClassifierFree(denoiser, scale, negative, interval)

    made = generator(**CALL, prompt="a red heart", seed=7, output_type="pt", guidance=own, guidance_scale=4.0)
    torch.testing.assert_close(made.images, pixels(generator, guidance="cfg", guidance_scale=4.0), **CLOSE)
    assert "guidance" in made.recipes[0].unrecorded
    cached = generator(**CALL, prompt="a red heart", seed=7, output_type="pt", cache=lambda denoiser: Reuse(denoiser, stride=2))
    assert cached.nfe < 8 and "cache" in cached.recipes[0].unrecorded


UNGUIDED = {
    "z_image": {"guidance_scale": 0.0},  # which adds to the condition
    "krea2": {"guidance_scale": 0.0},
    "qwen_image": {"true_cfg_scale": 1.0},
    "kontext": {"true_cfg_scale": 1.0},  # its guidance_scale is one that the network reads
    "chroma": {"guidance_scale": 1.0},
    "bria": {"guidance_scale": 1.0},
}


@pytest.mark.parametrize("name", list(UNGUIDED))
def test_where_a_pipelines_own_guidance_ends(name):
    pipe, _ = opened(name)
    before = dict(vars(pipe))
    assert PipelineCall.of(pipe).unguided(pipe) == UNGUIDED[name]
    assert vars(pipe).keys() == before.keys()


def test_text_features_stand_for_prompts(generator):
    """Several pictures of them in a batch; guidance of ours, which reads texts, is refused."""
    options = {"prompt_embeds": numbers(1, 7, 16), "negative_prompt_embeds": -numbers(1, 7, 16)}
    together = generator(**CALL, seed=5, num_images_per_prompt=2, batch_size=2, output_type="pt", pipeline_options=options)
    alone = [generator(**CALL, seed=seed, output_type="pt", pipeline_options=options).images for seed in (5, 6)]
    torch.testing.assert_close(together.images, torch.cat(alone), **CLOSE)
    with pytest.raises(ValueError, match="reads prompts and negative prompts as rows, which prompt_embeds takes the place of"):
        generator(**CALL, seed=5, guidance="cfg", pipeline_options=options)


def test_consistency_models_end_in_their_clean_estimate():
    """LCM's pipeline decodes what its scheduler gives second; in one step, which draws no noise, it is the pipeline's."""
    pipe = latent_consistency()
    pipe.set_progress_bar_config(disable=True)
    sides = {"height": SIZE, "width": SIZE}
    own = pipe("a cat", num_inference_steps=1, generator=torch.Generator().manual_seed(7), output_type="np", **sides).images
    generator = Generator.from_pipeline(pipe)
    made = generator("a cat", num_inference_steps=1, seed=7, output_type="np", progress=False, **sides)
    assert abs(made.images - own).max() < 1e-4 and made.recipes[0].sampler == "lcm"
    assert generator("a cat", num_inference_steps=4, seed=7, progress=False, **sides).nfe == 4
