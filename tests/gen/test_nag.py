"""Normalised attention guidance in diffusers' networks, against processors written as published, and in calls."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gen.adapters import Adapter, Delta
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from samplers.denoiser import Context
from samplers.guidance import NormalizedAttention

SCALE, TAU, ALPHA = 4.0, 1.5, 0.6
CALL = {"seed": 3, "num_inference_steps": 3, "progress": False, "output_type": "latent"}


def led(positive, negative):
    guided = positive * SCALE - negative * (SCALE - 1)
    ratio = guided.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    return ALPHA * guided * ratio.clamp_max(TAU) / ratio + (1 - ALPHA) * positive


def attend(q, k, v):
    return F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v))).transpose(1, 2).flatten(2)


class CrossProcessor:
    """The picture's rows attend to both prompts, which come as rows one after another."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        q = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))
        k, v = (project(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for project in (attn.to_k, attn.to_v))
        (k, k_minus), (v, v_minus) = k.chunk(2), v.chunk(2)
        return attn.to_out[0](led(attend(q, k, v), attend(q, k_minus, v_minus)))


class FluxProcessor:
    """Each prompt has a stream beside the same patches."""

    def __init__(self, patches: int = 64):
        self.patches = patches

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(projects, norms, tokens):
            q, k, v = (project(tokens).unflatten(-1, (-1, attn.head_dim)) for project in projects)
            return [norms[0](q), norms[1](k), v]

        parts = heads((attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k), hidden_states)
        if encoder_hidden_states is not None:
            norms = attn.norm_added_q, attn.norm_added_k
            text = heads((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), norms, encoder_hidden_states)
            parts = [torch.cat([a, b], dim=1) for a, b in zip(text, parts, strict=True)]
        q, k = (apply_rotary_emb(part, image_rotary_emb, sequence_dim=1) for part in parts[:2])
        out, patches = attend(q, k, parts[2]), self.patches
        plus, minus = out.chunk(2)
        guided = led(plus[:, -patches:], minus[:, -patches:])
        text, picture = out[:, :-patches], torch.cat([guided, guided])
        if encoder_hidden_states is None:
            return torch.cat([text, picture], dim=1)
        return attn.to_out[0](picture), attn.to_add_out(text)


def conditions(generator: Generator):
    prompt, negative = generator.encode_prompt(["a red cat"]), generator.encode_prompt(["blurry moon"], negative=True)
    x = torch.randn(1, generator.channels, 16, 16, generator=torch.Generator().manual_seed(0))
    return x, generator.denoiser.path(0.6), prompt, negative


def predict(generator: Generator, rule=None):
    x, level, prompt, _ = conditions(generator)
    with torch.no_grad():
        return (rule or generator.denoiser)(x, level, prompt, Context()).raw


def guided(generator: Generator, negative, **options) -> torch.Tensor:
    return predict(generator, NormalizedAttention(generator.denoiser, negative, SCALE, TAU, ALPHA, **options))


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
@torch.no_grad()
def test_u_nets_are_guided_as_published(bridged, name):
    _, generator = bridged(name)
    x, level, prompt, negative = conditions(generator)
    network = generator.network.network
    found = guided(generator, negative)
    kept = dict(network.attn_processors)
    own = {key: CrossProcessor() if "attn2" in key else value for key, value in kept.items()}
    network.set_attn_processor(own)
    try:
        added = generator.network.added(x, generator.network.place(prompt, x))
        time = torch.tensor([len(generator.denoiser.path.table) * level.t - 1])
        both = torch.cat([prompt.tokens, negative.tokens])
        expected = network(x, time, encoder_hidden_states=both, added_cond_kwargs=added, return_dict=False)[0]
    finally:
        network.set_attn_processor(kept)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (found - predict(generator)).abs().max() > 1e-3


@torch.no_grad()
def test_flux_is_guided_as_published(bridged):
    """In double and single blocks; the negative prompt's stream has the prompt's pooled vector here."""
    _, generator = bridged("flux")
    x, level, prompt, negative = conditions(generator)
    found = guided(generator, negative)
    network, flux = generator.network.network, generator.network
    kept = dict(network.attn_processors)
    network.set_attn_processor(FluxProcessor())
    try:
        both = prompt.cat([negative.__class__(tokens=negative.tokens, mask=negative.mask, pooled=prompt.pooled)])
        time = torch.full((2,), float(level.t))
        expected = flux.call(torch.cat([x, x]), time, both)
    finally:
        network.set_attn_processor(kept)
    torch.testing.assert_close(expected[:1], expected[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected[:1], atol=1e-5, rtol=0)
    assert (found - predict(generator)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "pixart",
        "sana",
        "sd3",
        "chroma",
        "qwen_image",
        "kolors",
        "z_image",
        "krea2",
        "auraflow",
        "cogview4",
        "lumina2",
        "sana_sprint",
    ],
)
@torch.no_grad()
def test_every_family_that_reads_text_can_be_guided(bridged, name):
    """Away from the prompt itself is nowhere; away from another is somewhere; afterwards the network is as it was."""
    _, generator = bridged(name)
    _, _, prompt, negative = conditions(generator)
    plain = predict(generator)
    torch.testing.assert_close(guided(generator, prompt), plain, atol=1e-5, rtol=1e-4)
    assert (guided(generator, negative) - plain).abs().max() > 1e-4
    assert torch.equal(predict(generator), plain)


@torch.no_grad()
def test_a_picture_that_is_edited_is_guided_with_the_noise(bridged):
    """FLUX Kontext: its tokens follow those of x."""
    from gen.models.bridge.families.flux_edit import Kontext

    _, generator = bridged("flux")
    x, level, prompt, negative = conditions(generator)
    kontext = Kontext(generator.network.network)
    reference = torch.randn(1, generator.channels, 12, 16, generator=torch.Generator().manual_seed(4))
    prompt = replace(prompt, extra={"reference": reference})
    rule = NormalizedAttention(replace(generator.denoiser, network=kontext), negative, SCALE, TAU, ALPHA)
    found = rule(x, level, prompt, Context()).raw
    kept = dict(kontext.network.attn_processors)
    kontext.network.set_attn_processor(FluxProcessor(64 + 48))
    try:
        both = prompt.cat([replace(negative, pooled=prompt.pooled, extra=prompt.extra)])
        expected = kontext.call(torch.cat([x, x]), torch.full((2,), float(level.t)), both)
    finally:
        kontext.network.set_attn_processor(kept)
    torch.testing.assert_close(found, expected[:1], atol=1e-5, rtol=0)


def test_a_network_that_cannot_says_why(bridged, class_model):
    _, generator = bridged("flux2")
    with pytest.raises(ValueError, match="cannot work on this network: most of its blocks project attention"):
        predict(generator, NormalizedAttention(generator.denoiser))


def test_what_is_said_of_a_negative_prompt_names_what_the_network_takes(bridged):
    """FLUX.2 embeds its scale and has no places for normalised attention guidance."""
    for name, others in (("flux", "nag"), ("flux2", "cfg")):
        _, generator = bridged(name)
        with pytest.warns(UserWarning, match=f"no effect under the guidance 'embedded'; use {others} for it"):
            generator.check("a cat", negative_prompt="blurry", num_inference_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain, led_away = (generator("a cat", text, guidance="cfg", guidance_scale=3.0, **CALL) for text in ("", "blurry moon"))
    assert not torch.equal(plain.images[0], led_away.images[0])


@pytest.mark.parametrize(("name", "layer"), [("stable_diffusion", "attn2"), ("flux", "attn"), ("pixart", "attn2")])
@torch.no_grad()
def test_a_lora_on_the_projection_sees_what_was_guided(bridged, name, layer):
    """Beside the weight it is what it is fused into the weight: both multiply the tokens that guidance has changed."""
    _, generator = bridged(name)
    _, _, _, negative = conditions(generator)
    linear = {
        path: module
        for path, module in generator.network.named_modules()
        if path.endswith(f".{layer}.to_out.0") and isinstance(module, torch.nn.Linear)
    }
    draw, layers = torch.Generator().manual_seed(0), {}
    for path, module in linear.items():
        factors = {"down": torch.randn(2, module.in_features, generator=draw) * 0.3}
        factors["up"] = torch.randn(module.out_features, 2, generator=draw) * 0.3
        layers["denoiser." + path.removeprefix("network.")] = Delta(factors, 1.0)
    plain = guided(generator, negative)
    assert generator.load_adapter(Adapter("style", layers), "style").complete
    try:
        rule = NormalizedAttention(generator.denoiser, negative, SCALE, TAU, ALPHA)
        x, level, prompt, _ = conditions(generator)
        beside = rule(x, level, prompt, Context(adapters={"style": 1.0})).raw
        generator.fuse_adapters({"style": 1.0})
        fused = rule(x, level, prompt, Context()).raw
        generator.unfuse_adapters()
    finally:
        generator.unload_adapter("style")
    torch.testing.assert_close(beside, fused, atol=1e-4, rtol=1e-4)
    assert (beside - plain).abs().max() > 1e-2


# ---- in calls ----


@pytest.fixture(scope="module")
def fast() -> Generator:
    return Generator.from_pretrained("fast", device="cpu", dtype="float32")


def test_the_student_takes_a_negative_prompt(fast):
    plain = fast("a flower", **CALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = fast("a flower", "pink", guidance="nag", **CALL)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert (recipe.guidance, recipe.guidance_scale, recipe.nfe) == ("embedded + nag", 5.0, 6)
    assert (made.images[0] - plain.images[0]).abs().max() > 0.1
    assert torch.equal(fast.replay(recipe, "latent", progress=False).images[0], made.images[0])
    none = fast("a flower", "pink", guidance="nag", guidance_options={"nag_scale": 1.0}, **CALL)
    assert torch.equal(none.images[0], plain.images[0]) and none.nfe == 3
    with pytest.warns(UserWarning, match="negative_prompt has no effect under the guidance 'embedded'; use nag for it"):
        fast("a flower", "pink", **CALL)


def test_guidance_that_the_student_cannot_have_is_refused_in_words_of_a_call(fast):
    for rule in ("cfg", "apg", "cfg + nag"):
        with pytest.raises(ValueError, match="'fast' receives its guidance scale as an input; in the place of guidance="):
            fast("a flower", guidance=rule, **CALL)


def test_a_cat_that_is_not_orange(fast):
    """As in the picture of docs/guidance.md: what is not wanted is gone."""
    call = {**CALL, "num_inference_steps": 4, "output_type": "pt"}
    red, _, blue = fast("a cat", **call).images[0].mean((1, 2))
    red_without, _, blue_without = fast("a cat", "orange", guidance="nag", **call).images[0].mean((1, 2))
    assert red - blue > 0.05 and blue_without - red_without > 0.05


def test_it_goes_with_guidance_prompts_and_tasks(tiny):
    cfg = tiny("a red heart", "blurry", guidance="nag", **CALL)
    assert cfg.recipes[0].guidance == "cfg + nag" and cfg.nfe == 9
    assert torch.equal(tiny("a red heart", "blurry", guidance="cfg + nag", **CALL).images[0], cfg.images[0])
    for call in ({"guidance": "apg + nag + rescale"}, {"guidance": "nag", "guidance_scale": 1.0},
                 {"guidance": "nag", "cache": "first_block"}, {"guidance": "pag + nag"}):  # fmt: skip
        made = tiny("a [red:blue:0.5] heart AND a cat", "[blurry:moon:0.5]", **call, **CALL)
        assert torch.equal(tiny.replay(made.recipes[0], "latent", progress=False).images[0], made.images[0]), call
        other = tiny("a [red:blue:0.5] heart AND a cat", "a dog", **call, **CALL)
        assert not torch.equal(other.images[0], made.images[0]), call
    alone = tiny("a red heart", "blurry", guidance="nag", guidance_scale=1.0, **CALL)
    together = tiny(["a red heart", "a cat"], "blurry", guidance="nag", guidance_scale=1.0, **CALL)
    assert torch.equal(together.images[0], alone.images[0])
    region = {"regions": [{"prompt": "a red heart", "box": [0, 0, 1, 1]}]}
    placed = tiny.layout(region, negative_prompt="blurry", guidance="nag", **CALL)
    torch.testing.assert_close(placed.images[0], cfg.images[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="names 'nag' twice; name it once"):
        tiny("a red heart", "blurry", guidance="nag + nag", **CALL)
    wide = tiny.panorama("a red heart", width=48, height=32, negative_prompt="blurry", guidance="nag", **CALL)
    assert bool(wide.images[0].isfinite().all())


def test_the_command_line_gives_the_student_a_negative_prompt(fewstep):
    command = ["image", "a flower", "--seed", 1, "--steps", 2, "-o", "a.png", "--negative", "pink", "--fast"]
    code, _, err = fewstep(*command)
    assert code == 2 and "With --guidance nag alone it takes a negative prompt" in err
    assert fewstep(*command, "--guidance", "nag")[0] == 0
    recipe = read_recipe("a.png")
    assert recipe.guidance == "embedded + nag" and recipe.model.name == "fast"
    assert fewstep(*command[:-1], "-o", "b.png", "--guidance", "nag", "--guidance-option", "nag_scale=9")[0] == 0
    assert read_recipe("b.png").guidance_options == {"nag_scale": 9} and read_recipe("b.png").model.name == "fast"
