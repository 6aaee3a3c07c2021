"""Pipelines of diffusers whose denoiser runs in our networks of text and patches: the same pictures, LoRAs, caches, folders."""

from __future__ import annotations

import pytest
import torch

from gen.adapters import Adapter, Delta
from gen.cli import app as cli
from gen.generator import Generator
from gen.nn import quantized
from gen.pipeline.png import read_recipe
from tests.gen import pipelines, pipelines_chat
from tests.gen.joint import FAMILIES

NAMES = [family.pipeline for family in FAMILIES.values()]
CALL = {"num_inference_steps": 3, "seed": 3, "height": 64, "width": 64, "output_type": "pt", "progress": False}
CONTROLLED = ("sd3", "flux", "qwen_image")  # which take ControlNets
PROMPTS = ["a red cat", "a dog on the moon"]
ON_CPU = {"device": "cpu", "dtype": "float32"}


def close(a, b):
    """1e-4 in pixels of 0 to 1, and the pictures are not plain."""
    assert (a - b).abs().max() < 1e-4 and b.std() > 0.02


def folder_of(name, tmp_path):
    module = pipelines if hasattr(pipelines, name) else pipelines_chat
    return pipelines.save(getattr(module, name)(), tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_pictures(bridged, name):
    """With guidance, a negative prompt, another size, and without guidance; the default is diffusers' network."""
    _, theirs = bridged(name)
    _, mine = bridged(name, native=True)
    assert mine.network.attention_backend == "auto" and not hasattr(mine.network, "bridged")
    for call in ({}, {"negative_prompt": "blurry"}, {"height": 32, "width": 48}, {"guidance_scale": 1.0}):
        if call.get("negative_prompt") and theirs.config.defaults.guidance == "embedded":
            call = {**call, "guidance": "cfg", "guidance_scale": 3.0}
        close(mine(PROMPTS, **{**CALL, **call}).images, theirs(PROMPTS, **{**CALL, **call}).images)
    assert mine.config == theirs.config and mine.weights == theirs.weights


def test_the_default_is_diffusers_network(bridged):
    for name in NAMES:
        assert getattr(bridged(name, native=None)[1].network, "bridged", False)


@pytest.mark.parametrize("name", CONTROLLED)
def test_controls_add_what_they_add_to_diffusers_network(bridged, tmp_path, name):
    """1e-5 in latents: one, and two at once over part of the run, with a negative prompt; under a cache of blocks, too."""
    from tests.gen.test_control import EDGES, OTHER, network_for

    (pipeline, theirs), (_, mine) = bridged(name), bridged(name, native=True)
    folders = [tmp_path / "one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        network_for(name, pipeline, seed).save_pretrained(folder, safe_serialization=True)
    call = {**CALL, "height": 32, "width": 32, "output_type": "latent", "num_inference_steps": 2}
    one = {"control": EDGES, "controlnet": folders[0], "control_weight": 0.7}
    two = {"control": [EDGES, OTHER], "controlnet": folders, "control_range": [(-1000, 0.0), (-1000, 1000)]}
    plain = mine(PROMPTS, **call).images
    for asked in (one, {**two, "guidance": "cfg", "guidance_scale": 3.0, "negative_prompt": "blurry"}):
        found = mine(PROMPTS, **call, **asked).images
        torch.testing.assert_close(found, theirs(PROMPTS, **call, **asked).images, atol=1e-5, rtol=1e-5)
        assert (found - plain).abs().max() > 1e-3
    never = mine(PROMPTS, **call, **one, cache="first_block", cache_options={"threshold": 1e-9}).images
    assert torch.equal(never, mine(PROMPTS, **call, **one).images)


def test_a_network_without_controls_says_so(bridged, tmp_path):
    with pytest.raises(ValueError, match=r"a network of our own that takes no ControlNet; .* native=False"):
        bridged("z_image", native=True)[1]("a cat", control=torch.rand(3, 64, 64), controlnet=tmp_path, **CALL)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_and_fewer_bits(tmp_path, monkeypatch, name):
    folder = folder_of(name, tmp_path)
    exact = Generator.from_pretrained(folder, native=True, **ON_CPU)("a red cat", **CALL).images
    half = Generator.from_pretrained(folder, native=True, device="cpu", dtype="bfloat16")
    assert 0 < (half("a red cat", **CALL).images.float() - exact).abs().mean() < 0.2
    monkeypatch.setattr(quantized, "SMALLEST", 1)
    fewer = Generator.from_pretrained(folder, native=True, quantize="int8", **ON_CPU)
    assert quantized.is_quantized(fewer.network)
    assert 0 < (fewer("a red cat", **CALL).images - exact).abs().mean() < 0.2


def lora(network, names, seed=0):
    """A LoRA of rank 2 on some linear layers, by diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for name in names:
        module = network.get_submodule(name)
        factors = {"down": torch.randn(2, module.in_features, generator=generator) * 0.3}
        factors["up"] = torch.randn(module.out_features, 2, generator=generator) * 0.3
        layers[f"denoiser.{name}"] = Delta(factors, 1.0)
    return Adapter("style", layers)


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_for_diffusers_layers_lands_and_draws_the_same(bridged, name):
    """On every linear layer of diffusers' network, and for two pictures with other weights of it."""
    (pipeline, theirs), (_, mine) = bridged(name), bridged(name, native=True)
    linear = [path for path, module in pipeline.transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    pictures = []
    for generator in (theirs, mine):
        assert generator.load_adapter(lora(pipeline.transformer, linear), "style").complete
        try:
            drawn = []
            for generator.adapters["style"] in (1.0, 0.3):
                drawn.append(generator(PROMPTS, **CALL).images)
            pictures.append(torch.cat(drawn))
        finally:
            generator.unload_adapter("style")
    close(pictures[1], pictures[0])
    plain = mine(PROMPTS, **CALL).images.repeat(2, 1, 1, 1)
    assert (plain - pictures[1]).flatten(1).abs().max(1).values.min() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_every_name_that_adapters_have_for_diffusers_network_is_known(bridged, name):
    """The authors', kohya's and XLabs' names lead to as many rows as they do in diffusers' network."""
    from gen.adapters.resolve import Index

    (_, theirs), (_, mine) = bridged(name), bridged(name, native=True)
    known, index = Index(theirs.network.network), Index(mine.network)

    def rows(one, targets):
        spans = [target.rows or (0, len(one.modules[target.module].weight)) for target in targets]
        return sum(stop - start for start, stop in spans)

    for path, targets in known.targets.items():
        module = known.modules[targets[0].module]
        if not isinstance(module, torch.nn.Linear):
            continue
        assert rows(index, index.find(path)) == rows(known, targets), path
        assert index.find(path.replace(".", "_"), underscored=True), path


@pytest.mark.parametrize("name", NAMES)
def test_guidance_and_caches_that_need_the_inside_of_attention(bridged, name):
    """Perturbed attention, which diffusers' network refuses, and a cache of attention; NAG as there."""
    (_, theirs), (_, mine) = bridged(name), bridged(name, native=True)
    plain = mine("a red cat", **CALL).images
    perturbed = {"guidance": "pag", "guidance_scale": 2.0, "guidance_options": {"layers": (0,)}}
    assert (mine("a red cat", **CALL, **perturbed).images - plain).abs().max() > 1e-4
    with pytest.raises(ValueError, match="text and image together"):
        theirs("a red cat", **CALL, **perturbed)
    for cache in ("reuse", "first_block", "pyramid"):
        assert torch.isfinite(mine("a red cat", **CALL, cache=cache).images).all()
    nag = {"guidance": "nag", "negative_prompt": "blurry", "guidance_scale": 3.0}
    close(mine("a red cat", **CALL, **nag).images, theirs("a red cat", **CALL, **nag).images)


@pytest.mark.parametrize("name", NAMES)
def test_saved_as_a_pipeline_and_as_our_folder(bridged, tmp_path, name):
    import diffusers

    pipeline, mine = bridged(name, native=True)
    expected = mine("a red cat", **CALL).images
    folder = mine.save_pretrained(tmp_path / "theirs", format="diffusers")
    kind = type(pipeline.transformer)
    opened, info = kind.from_pretrained(folder / "transformer", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before = pipeline.transformer.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in opened.state_dict().items())
    again = Generator.from_pretrained(folder, native=True, **ON_CPU)
    assert torch.equal(again("a red cat", **CALL).images, expected)
    assert isinstance(opened, getattr(diffusers, kind.__name__))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_which_network_ran(tmp_path, name):
    folder = folder_of(name, tmp_path)
    shared = ["--model", str(folder), "--device", "cpu", "--dtype", "float32"]
    for native, backend in (("native", "auto"), ("no-native", "diffusers")):
        picture, again = tmp_path / f"{native}.png", tmp_path / f"{native}-again.png"
        assert (
            cli.main(["image", "a cat", "--steps", "2", "--seed", "1", "-q", f"--{native}", "-o", str(picture), *shared]) == 0
        )
        assert read_recipe(picture).machine.attention.split()[0] == backend
        assert cli.main(["replay", str(picture), "--model", str(folder), "-q", "-o", str(again)]) == 0
        assert again.read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_bits_do_not_depend_on_the_batch(bridged, name):
    _, mine = bridged(name, native=True)
    together = mine(PROMPTS, batch_invariant=True, **CALL).images
    for i, prompt in enumerate(PROMPTS):
        alone = mine(prompt, batch_invariant=True, **{**CALL, "seed": 3 + i}).images
        assert torch.equal(alone[0], together[i])
