"""What is particular to a family: v-prediction, size ids, embedded guidance, encoders that may be missing."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from gen.generator import Generator
from gen.pipeline.settings import Sampling, make_settings
from tests.gen import pipelines
from tests.gen.test_bridge_parity import CLOSE, NEGATIVE, PROMPT, noise, ours, theirs


def test_v_prediction_and_zero_terminal_snr(bridged):
    """Stable Diffusion 2's way: v, and a path that ends in pure noise, from where DDIM starts in both."""
    pipeline, generator = bridged(
        "stable_diffusion", prediction="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert generator.config.prediction == "v" and generator.denoiser.path(1.0).alpha == 0
    x = noise(generator, 1)
    torch.testing.assert_close(
        ours("stable_diffusion", generator, x, 3.0), theirs("stable_diffusion", pipeline, x, 3.0), **CLOSE
    )


def test_sdxl_reads_the_size_of_the_picture(bridged):
    """Its size ids are the height and width being made; a picture that is not square tells the two apart."""
    pipeline, generator = bridged("sdxl")
    x = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(3))
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 32, "width": 48, "output_type": "pt"}
    reference = pipeline(PROMPT, latents=x.clone(), **options).images
    sigma = generator.denoiser.path.discrete(501).sigma  # leading from timestep 1 in strides of 500
    found = generator(PROMPT, latents=x / sigma, progress=False, **options).images
    torch.testing.assert_close(found, reference, **CLOSE)
    other = pipeline(PROMPT, latents=x.clone(), original_size=(48, 32), target_size=(48, 32), **options).images
    assert (other - reference).abs().max() > 1e-3


def test_sdxl_without_zeros_reads_the_empty_prompt(bridged):
    pipeline, generator = bridged("sdxl", zeros=False)
    x = noise(generator, 1)
    found = ours("sdxl", generator, x, 4.0)
    torch.testing.assert_close(found, theirs("sdxl", pipeline, x, 4.0), **CLOSE)
    _, zeros = bridged("sdxl")
    assert (ours("sdxl", zeros, x, 4.0) - found).abs().max() > 1e-3


def test_pixart_alpha_at_1024_reads_the_size(bridged):
    """diffusers adds the size where the network's sample_size is 128; ours where its config says so too."""
    pipeline, generator = bridged("pixart", sized=True)
    network = generator.network
    x, time = torch.randn(1, 4, 16, 24), torch.tensor([500.0])
    condition = generator.encode_prompt([PROMPT])
    with torch.no_grad():
        found = network.call(x, time, condition)
        reference = pipeline.transformer(
            x,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask.float(),
            timestep=time,
            added_cond_kwargs={"resolution": torch.tensor([[32.0, 48.0]]), "aspect_ratio": torch.tensor([[32 / 48]])},
        ).sample
    torch.testing.assert_close(found, reference, atol=1e-6, rtol=1e-5)


def test_flux_reads_its_guidance_scale_and_can_be_guided_besides(bridged):
    pipeline, generator = bridged("flux")
    x = noise(generator, 1)
    default = ours("flux", generator, x, None)
    torch.testing.assert_close(default, theirs("flux", pipeline, x, 3.5), **CLOSE)
    assert (ours("flux", generator, x, 9.0) - default).abs().max() > 1e-3
    reference = theirs("flux", pipeline, x, 3.5, negative_prompt=[NEGATIVE], true_cfg_scale=2.0)
    both = ours("flux", generator, x, 2.0, guidance="cfg", negative_prompt=NEGATIVE)
    torch.testing.assert_close(both, reference, **CLOSE)


def test_latent_consistency_models_read_their_guidance_scale(bridged):
    """One step is deterministic: the consistency function at the last timestep, under an embedded scale."""
    pipeline, generator = bridged("latent_consistency")
    assert generator.config.defaults.guidance == "embedded" and generator.config.defaults.sampler == "lcm"
    x, options = noise(generator, 2), {"num_inference_steps": 1}
    for scale in (8.5, 3.0):
        reference = theirs("latent_consistency", pipeline, x, scale, **options)
        level = generator.denoiser.path.discrete(999)
        images = generator(
            [PROMPT] * 2, latents=x / level.sigma, guidance_scale=scale, output_type="pt", progress=False, **options
        ).images
        # theirs mixes in the noisy input by boundary factors of 1e-8 at this timestep
        torch.testing.assert_close(images, reference, **CLOSE)
    default = generator([PROMPT] * 2, latents=x / level.sigma, output_type="pt", progress=False, **options).images
    assert (default - images).abs().max() > 1e-4


def test_flux_without_a_guidance_input(bridged):
    """Schnell: no embedded scale, an unshifted grid, and a rule that needs one is refused."""
    pipeline, generator = bridged("flux", guided=False)
    x = noise(generator, 1)
    pipeline.scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    reference = theirs("flux", pipeline, x, 0.0, max_sequence_length=256)
    torch.testing.assert_close(ours("flux", generator, x, None), reference, **CLOSE)
    with pytest.raises(ValueError, match="reads no guidance scale"):
        generator(PROMPT, guidance="embedded")


def test_sd3_without_t5(bridged):
    pipeline, generator = bridged("sd3", with_t5=False)
    x = noise(generator, 1)
    found = ours("sd3", generator, x, 4.0)
    torch.testing.assert_close(found, theirs("sd3", pipeline, x, 4.0), **CLOSE)


def test_dit_knows_its_classes_by_name(bridged):
    _, generator = bridged("dit")
    named = generator(class_labels=["Thing 7"], num_inference_steps=1, seed=1, output_type="pt", progress=False)
    number = generator(class_labels=[7], num_inference_steps=1, seed=1, output_type="pt", progress=False)
    assert torch.equal(named.images, number.images) and generator.classes == 1000
    with pytest.raises(ValueError, match=r"no class 'thing 70000'.*Did you mean"):
        generator(class_labels=["thing 70000"])


@pytest.mark.parametrize("cache", ["reuse", "easy"])
def test_output_caches_and_edits_go_on_top(bridged, cache):
    """Whatever acts on a denoiser acts on a bridged one: caches of outputs, other guidance, a picture under a mask."""
    _, generator = bridged("stable_diffusion")
    options = {"num_inference_steps": 6, "seed": 2, "output_type": "pt", "progress": False}
    plain = generator(PROMPT, **options)
    cached = generator(PROMPT, cache=cache, cache_options={"stride": 2} if cache == "reuse" else {}, **options)
    assert cached.nfe < plain.nfe if cache == "reuse" else cached.nfe <= plain.nfe
    guided = generator(PROMPT, guidance="apg + rescale", **options)
    assert (guided.images - plain.images).abs().max() > 1e-4
    picture, mask = torch.full((3, 32, 32), 0.5), torch.zeros(1, 32, 32)
    mask[:, :, 16:] = 1
    edited = generator(PROMPT, image=picture, mask=mask, **options)
    assert torch.equal(edited.images[..., :16], picture[None, ..., :16]) and edited.images[..., 16:].std() > 0.01


def test_a_picture_does_not_depend_on_those_beside_it(bridged):
    """Its noise, prompt and decoding are its own; a long prompt beside it changes nothing but rounding."""
    _, generator = bridged("sdxl")
    options = {"num_inference_steps": 3, "output_type": "pt", "progress": False}
    alone = generator(PROMPT, seeds=[4], **options)
    beside = generator(["word, " * 60, PROMPT], seeds=[3, 4], **options)
    torch.testing.assert_close(beside.images[1:], alone.images, **CLOSE)
    long = generator("word, " * 60, negative_prompt=NEGATIVE, seeds=[3], **options)  # the two sides have other lengths
    assert (long.images - beside.images[:1]).abs().max() > 1e-4


def test_a_recipe_of_a_bridged_model_replays(bridged):
    _, generator = bridged("flux")
    made = generator(PROMPT, seed=3, num_inference_steps=2, height=32, width=48, output_type="pt", progress=False)
    recipe = made.recipes[0]
    assert recipe.machine.attention == "diffusers" and recipe.schedule_options["tokens"] == 8 * 12
    assert set(recipe.model.weights) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert torch.equal(generator.replay(recipe, output_type="pt", progress=False).images, made.images)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_sana_sprint_gives_its_pipelines_picture(bridged, monkeypatch, steps):
    """At its defaults, on a grid of TrigFlow's time; noise is left out on both sides."""
    from diffusers.schedulers import scheduling_scm

    monkeypatch.setattr(scheduling_scm, "randn_tensor", lambda shape, **options: torch.zeros(shape))
    pipeline, generator = bridged("sana_sprint")
    defaults = generator.config.defaults
    assert (defaults.num_inference_steps, defaults.sampler, defaults.schedule) == (2, "lcm", "trigflow")
    assert (defaults.guidance, defaults.guidance_scale) == ("embedded", 4.5)
    x = noise(generator, 2)
    size = {"height": pipelines.SIZE, "width": pipelines.SIZE, "output_type": "pt"}
    middle = {} if steps == 2 else {"intermediate_timesteps": None}
    pictures = []
    for scale in ({}, {"guidance_scale": 1.5}):
        reference = pipeline(
            [PROMPT] * 2, latents=x.clone(), num_inference_steps=steps, use_resolution_binning=False, **middle, **size, **scale
        ).images
        call = {"sampler_options": {"s_noise": 0.0}, "sampler": "lcm", "schedule": "trigflow", "progress": False}
        found = generator([PROMPT] * 2, latents=x, num_inference_steps=steps, **call, **size, **scale).images
        torch.testing.assert_close(found, reference, **CLOSE)
        pictures.append(found)
    assert found.std() > 0.02 and (pictures[0] - pictures[1]).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [20, 28])
def test_skip_layer_guidance_is_that_of_stable_diffusion_35(bridged, steps):
    """At the pipeline's defaults: it skips layers in the steps between 0.01 and 0.2 of the run, which on its grid are those
    between two levels, the same for 20 to 50 steps."""
    pipeline, generator = bridged("sd35")
    x, layers = noise(generator, 1), (1, 2)
    options = {"num_inference_steps": steps, "negative_prompt": NEGATIVE}
    plain = ours("sd35", generator, x, 7.0, **options)
    reference = theirs("sd35", pipeline, x, 7.0, skip_guidance_layers=list(layers), **options)
    skipped = {"layers": layers, "perturbed_interval": (-6.0, -2.5)}
    found = ours("sd35", generator, x, 7.0, guidance="slg", guidance_options=skipped, **options)
    torch.testing.assert_close(found, reference, **CLOSE)
    assert (found - plain).abs().max() > 1e-3
    for count in (20, 28, 40, 50):
        settings = make_settings(generator, Sampling(num_inference_steps=count), pipelines.SIZE, pipelines.SIZE)
        inside = [i for i, level in enumerate(settings.levels[:-1]) if -6.0 <= level.logsnr <= -2.5]
        assert inside == [i for i in range(count) if 0.01 * count < i < 0.2 * count]


@pytest.mark.parametrize("steps", [4, 20])
def test_kolors_gives_its_pipelines_picture(bridged, steps):
    pipeline, generator = bridged("kolors")
    x = noise(generator, 2)
    size = {"height": pipelines.SIZE, "width": pipelines.SIZE, "output_type": "pt", "num_inference_steps": steps}
    first = make_settings(generator, Sampling(num_inference_steps=steps), pipelines.SIZE, pipelines.SIZE).levels[0]
    pipeline.scheduler.set_timesteps(steps)
    begun = x * float(pipeline.scheduler.init_noise_sigma) * first.alpha / first.sigma  # ours has the first level's own noise
    pictures = []
    for ours_says, theirs_says in (({}, {}), ({"negative_prompt": NEGATIVE}, {"negative_prompt": [NEGATIVE] * 2})):
        reference = pipeline([PROMPT] * 2, latents=x.clone(), **size, **theirs_says).images
        found = generator([PROMPT] * 2, latents=begun, progress=False, **size, **ours_says).images
        torch.testing.assert_close(found, reference, **CLOSE)
        pictures.append(found)
    assert found.std() > 0.02 and (pictures[0] - pictures[1]).abs().max() > 1e-3


def test_kolors_reads_as_its_tokenizer_does(bridged):
    """Letters beyond ASCII, weights, and texts that are too long."""
    pipeline, generator = bridged("kolors")
    for prompt in ("ä cat é on the  moon", ""):
        tokens, _, pooled, _ = pipeline.encode_prompt([prompt], do_classifier_free_guidance=False)
        found = generator.encode_prompt([prompt])
        torch.testing.assert_close(found.tokens, tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=1e-5)
    plain, weighted = (generator.encode_prompt([prompt]).tokens[0] for prompt in ("ä cat", "ä (cat:1.5)"))
    changed = (weighted - plain).abs().amax(-1) > 0
    assert changed[-3:].all() and not changed[:-4].any()
    torch.testing.assert_close(weighted[-3:], plain[-3:] * 1.5)
    with pytest.warns(UserWarning, match="longer than the 256 tokens"):
        long = generator.encode_prompt(["word " * 60]).tokens
    tokens = pipeline.encode_prompt(["word " * 60], do_classifier_free_guidance=False)[0]
    torch.testing.assert_close(long, tokens, atol=1e-5, rtol=1e-5)


def test_kolors_was_published_with_code_that_is_not_read(bridged, tmp_path):
    _, generator = bridged("kolors")
    folder = generator.save_pretrained(tmp_path / "kolors")
    for part, file in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
        config = json.loads((folder / part / file).read_text())
        code = {"auto_map": {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}}
        (folder / part / file).write_text(json.dumps(config | code))
    again = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    torch.testing.assert_close(again.encode_prompt(["a cat"]).tokens, generator.encode_prompt(["a cat"]).tokens)


def test_hidream_borrows_its_language_model(bridged, tmp_path):
    """Its repositories lack Llama: a folder says where it is, with its tokenizer beside it."""
    _, generator = bridged("hidream")
    folder = generator.save_pretrained(tmp_path / "hidream")
    llama = (folder / "text_encoder_4").rename(tmp_path / "llama")
    for file in (folder / "tokenizer_4").iterdir():
        file.rename(llama / file.name)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_4": [None, None], "tokenizer_4": [None, None]}))
    with pytest.raises(
        ValueError, match=r"has no text_encoder_4; give text_encoder \(--text-encoder\), as its makers say meta-"
    ):
        Generator.from_pretrained(folder, device="cpu", dtype="float32")
    again = Generator.from_pretrained(folder, device="cpu", dtype="float32", text_encoder=llama)
    assert "text_encoder_4" in again.weights
    call = {"num_inference_steps": 1, "seed": 3, "height": 32, "width": 32, "output_type": "pt", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(again(PROMPT, **call).images, generator(PROMPT, **call).images)
    whole = again.save_pretrained(tmp_path / "whole")
    Generator.from_pretrained(whole, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="leave text_encoder out"):
        Generator.from_pretrained(whole, device="cpu", dtype="float32", text_encoder=llama)
