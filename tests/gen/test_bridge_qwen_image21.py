"""Qwen-Image 2.1: the pipeline's own picture, on white; texts of other lengths, which its network cannot have side by side."""

from __future__ import annotations

import json

import pytest
import torch

from gen.generator import Generator
from samplers.denoiser import Context
from tests.gen import pipelines, pipelines_chat
from tests.gen.newer_families import CLOSE, NEGATIVE, PROMPT, Row, attentions, latents_for, ours, theirs
from tests.gen.test_bridge_newer import lora_file, spelled

ROW = Row(pipelines_chat.qwen_image21, 2, lambda scale: {"true_cfg_scale": scale}, {"true_cfg_scale": 1.0})
LARGE = {"height": 256, "width": 256}  # the pipeline takes its autoencoder to make 16 pixels of a latent


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    pipeline = pipelines_chat.qwen_image21()
    pipeline.set_progress_bar_config(disable=True)
    folder = pipelines.save(pipeline, tmp_path_factory.mktemp("pipelines") / "qwen_image21")
    index = json.loads((folder / "model_index.json").read_text())
    pipeline.processor.tokenizer.save_pretrained(folder / "processor")
    index["processor"] = ["transformers", "Qwen3VLProcessor"]  # in the place of the stand-in
    (folder / "model_index.json").write_text(json.dumps(index))
    return pipeline, Generator.from_pretrained(folder, device="cpu", dtype="float32"), folder


def on_white(row: Row, pipeline, x: torch.Tensor, **options) -> torch.Tensor:
    """The pipeline's picture without its transparency."""
    tokens = x.flatten(2).mT
    picture = theirs(row, pipeline, tokens, **{**LARGE, **options})
    return picture[:, :3] * picture[:, 3:] + 1 - picture[:, 3:]


@pytest.mark.parametrize("steps", [4, 20])
def test_the_pipelines_picture(opened, steps):
    """Without guidance by default; under it with an empty and another negative prompt."""
    pipeline, generator, _ = opened
    x = latents_for(generator, 1)
    plain = ours(generator, x, num_inference_steps=steps)
    torch.testing.assert_close(plain, on_white(ROW, pipeline, x, num_inference_steps=steps), **CLOSE)
    for negative in ("", NEGATIVE):
        guidance = {"true_cfg_scale": 3.0, "negative_prompt": [negative]}
        reference = on_white(ROW, pipeline, x, num_inference_steps=steps, **guidance)
        found = ours(generator, x, num_inference_steps=steps, guidance_scale=3.0, negative_prompt=negative)
        torch.testing.assert_close(found, reference, **CLOSE)
        assert (found - plain).abs().max() > 1e-3


def test_texts_of_other_lengths_do_not_touch_one_another(opened):
    _, generator, _ = opened
    x = latents_for(generator, 2)
    options = {"num_inference_steps": 2, "output_type": "pt", "progress": False, "height": 32, "width": 32}
    both = generator(["a cat", PROMPT], latents=x, guidance_scale=2.0, **options).images
    for i, prompt in enumerate(("a cat", PROMPT)):
        alone = generator(prompt, latents=x[i : i + 1], guidance_scale=2.0, **options).images
        torch.testing.assert_close(both[i : i + 1], alone, **CLOSE)


def test_block_caches_where_texts_are_of_one_length(opened):
    _, generator, _ = opened
    x, seen = latents_for(generator, 1), []
    plain = ours(generator, x, num_inference_steps=4)
    never = ours(generator, x, num_inference_steps=4, cache="first_block", cache_options={"threshold": 1e-9})
    assert torch.equal(never, plain)
    skipped = ours(generator, x, num_inference_steps=4, cache="first_block", cache_options={"threshold": 1e3})
    assert (skipped - plain).abs().max() > 1e-5
    hooks = {"block": lambda index, count, tokens, run: seen.append((index, count)) or run()}
    with torch.no_grad():
        generator.network(x, torch.tensor([0.5]), generator.encode_prompt([PROMPT]), Context(hooks=hooks))
    assert seen == [(0, 2), (1, 2)]
    with pytest.raises(ValueError, match=r"calls prompts of other lengths one after another, .*; use the caches reuse or easy"):
        ours(generator, x, num_inference_steps=4, guidance_scale=2.0, cache="first_block")


def test_encoding_and_decoding_take_white_for_transparent(opened):
    pipeline, generator, _ = opened
    image = torch.rand(1, 3, 16, 24) * 2 - 1
    coded = generator.autoencoder.encode(image)
    opaque = torch.cat([image, torch.ones(1, 1, 16, 24)], dim=1)
    mean, std = (torch.tensor(pipeline.vae.config[f"latents_{name}"]).view(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        reference = (pipeline.vae.encode(opaque[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / std
    torch.testing.assert_close(coded, reference, atol=1e-5, rtol=1e-5)


def test_odd_sides_and_sigmas_of_its_own_are_refused(opened, tmp_path):
    _, generator, folder = opened
    with pytest.raises(ValueError, match="counts latents in fours, and 15 x 15 is no multiple of 4; choose even"):
        generator("a cat", height=30, width=30, num_inference_steps=2, progress=False)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "sample_sigmas": [1.0, 0.5]}))
    try:
        with pytest.raises(ValueError, match=r"sample_sigmas in model_index.json is not followed; set it to null"):
            Generator.from_pretrained(folder, device="cpu", dtype="float32")
    finally:
        (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("naming", ["diffusers", "kohya"])
def test_a_lora_acts_as_in_diffusers(opened, tmp_path, naming):
    """On texts of other lengths too, where samples cannot differ in adapters."""
    pytest.importorskip("peft")
    pipeline, generator, _ = opened
    file = lora_file(spelled(naming, attentions(pipeline.transformer)), tmp_path / "a.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
    assert generator.load_adapter(file, "a").complete
    x, time, condition = latents_for(generator, 2), torch.tensor([0.3, 0.8]), generator.encode_prompt(["a cat", PROMPT])
    own = generator.network.network
    try:
        with torch.no_grad():
            found = generator.network(x, time, condition, Context(adapters={"a": 1.0}))
            plain = generator.network(x, time, condition, Context())
            generator.network.network = pipeline.transformer
            reference = generator.network(x, time, condition, Context())
        torch.testing.assert_close(found, reference, atol=1e-4, rtol=1e-4)
        assert (found - plain).abs().max() > 0.01
        generator.network.network = own
        with pytest.raises(ValueError, match="samples cannot differ in adapters there"):
            generator.network(x, time, condition, Context(adapters={"a": torch.tensor([0.0, 1.0])}))
    finally:
        generator.network.network = own
        generator.unload_adapter("a")
        pipeline.unload_lora_weights()


def test_gradients_reach_both_of_two_lengths(opened):
    _, generator, _ = opened
    x = latents_for(generator, 2).requires_grad_()
    generator.network(
        x, torch.tensor([0.3, 0.8]), generator.encode_prompt(["a cat", PROMPT]), Context()
    ).square().sum().backward()
    assert all(row.abs().sum() > 0 for row in x.grad)
