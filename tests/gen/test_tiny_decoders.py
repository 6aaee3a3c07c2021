"""Tiny decoders: pictures as diffusers' with the same, previews in callbacks, files of every kind, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gen.generator import Generator
from gen.pipeline.recipe import Recipe
from tests.gen import pipelines
from tests.gen.test_bridge_parity import CLOSE, noise, ours, theirs

CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "pt"}


def tiny_autoencoder(channels: int = 4, levels: int = 2):
    from diffusers import AutoencoderTiny

    sizes = {"encoder_block_out_channels": (8,) * levels, "decoder_block_out_channels": (8,) * levels}
    blocks = {"num_encoder_blocks": (1,) * levels, "num_decoder_blocks": (2,) * (levels - 1) + (1,)}
    return pipelines.seeded(AutoencoderTiny, **sizes, **blocks, latent_channels=channels, seed=6)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """channels -> the folder, its file alone, and the authors' decoder, of one network."""

    def make(channels: int):
        network = tiny_autoencoder(channels)
        folder = tmp_path_factory.mktemp("tiny") / "taesd"
        network.save_pretrained(folder, safe_serialization=True)
        layers = network.decoder.layers.state_dict()
        authors = {f"{int(name.split('.')[0]) + 1}.{name.partition('.')[2]}": v.contiguous() for name, v in layers.items()}
        save_file(authors, folder.parent / "taesd_decoder.safetensors")
        return network, [folder, folder / "diffusion_pytorch_model.safetensors", folder.parent / "taesd_decoder.safetensors"]

    return make


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "sd3", "flux"])
def test_pictures_are_the_pipelines_with_it(bridged, sources, tmp_path, name):
    pipeline, _ = bridged(name)
    folder = pipelines.save(pipeline, tmp_path / name)
    network, kinds = sources(pipeline.vae.config.latent_channels)
    whole = Generator.from_pretrained(folder, device="cpu", dtype="float32", native=False)
    x, kept = noise(whole, 1), pipeline.vae
    pipeline.vae = network
    try:
        reference = theirs(name, pipeline, x, 4.0)
    finally:
        pipeline.vae = kept
    for source in kinds:
        generator = Generator.from_pretrained(
            folder, device="cpu", dtype="float32", native=False, preview_decoder=source, decoder="tiny"
        )
        torch.testing.assert_close(ours(name, generator, x, 4.0), reference, **CLOSE)
    assert (ours(name, whole, x, 4.0) - reference).abs().max() > 1e-2
    made = generator("a cat", height=32, width=32, **CALL)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert recipe.model.weights["decoder"] == generator.preview_decoder.digest
    assert torch.equal(generator.replay(recipe, "pt", progress=False).images[0], made.images[0])


def test_previews_are_of_full_size_and_pictures_stay(bridged, sources, tmp_path):
    pipeline, plain = bridged("stable_diffusion")
    folder = pipelines.save(pipeline, tmp_path / "sd")
    network, (source, *_) = sources(4)
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32", preview_decoder=source)
    shown, latents = [], []

    def callback(generator, step, t, kwargs):
        latents.append(kwargs["denoised"])
        shown.extend(generator.preview(kwargs["denoised"]))

    call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ("denoised",)}
    made = generator("a cat", height=32, width=48, **call, **CALL)
    assert [one.size for one in shown] == [(48, 32)] * 2
    expected = (network.decode(latents[-1]).sample / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    assert np.abs(np.asarray(shown[-1]) / 255 - expected.detach().numpy()).max() < 0.01
    assert torch.equal(made.images[0], plain("a cat", height=32, width=48, **CALL).images[0])
    assert "decoder" not in made.recipes[0].model.weights


def test_what_does_not_fit_is_one_sentence(bridged, sources, tiny_model, tmp_path):
    pipeline, _ = bridged("stable_diffusion")
    folder = pipelines.save(pipeline, tmp_path / "sd")
    _, (fits, *_) = sources(4)
    _, (wide, *_) = sources(16)
    tiny_autoencoder(4, 3).save_pretrained(tmp_path / "deep", safe_serialization=True)
    save_file({"1.weight": torch.zeros(8, 4, 3, 3), "4.x": torch.zeros(2)}, tmp_path / "odd.safetensors")
    save_file({"name": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({}, tmp_path / "a.pt")
    for source, decoder, said in (
        (wide, None, "of 16 channels to 2 pixels each, and this model's have 4 and 2"),
        (tmp_path / "deep", None, "of 4 channels to 4 pixels each"),
        (tmp_path / "odd.safetensors", None, "is no tiny decoder that is known"),
        (tmp_path / "other.safetensors", None, "is no tiny decoder that is known"),
        (tmp_path / "a.pt", None, "--from-pickle"),
        (folder, None, "is a 'AutoencoderKL'; a preview decoder is an AutoencoderTiny"),
        (None, "tiny", "needs a tiny decoder; give preview_decoder"),
        (fits, "large", "decoder is 'large'; give 'tiny'"),
    ):
        with pytest.raises(ValueError, match=said):
            Generator.from_pretrained(folder, device="cpu", preview_decoder=source, decoder=decoder)
    with pytest.raises(ValueError, match="has no autoencoder of diffusers"):
        Generator.from_pretrained(tiny_model, device="cpu", preview_decoder=fits)


def test_the_command_line_decodes_by_it(bridged, sources, tmp_path):
    from gen.cli import app
    from gen.pipeline.png import read_recipe

    pipeline, _ = bridged("stable_diffusion")
    folder, (_, (source, *_)) = pipelines.save(pipeline, tmp_path / "sd"), sources(4)
    parts = ["--model", folder, "--preview-decoder", source]
    command = [
        "image",
        "a cat",
        "--steps",
        1,
        "--height",
        32,
        "--width",
        32,
        "-o",
        tmp_path / "a.png",
        *parts,
        "--decoder",
        "tiny",
    ]
    assert app.main([str(part) for part in command]) == 0
    assert "decoder" in read_recipe(tmp_path / "a.png").model.weights
    again = [str(part) for part in ("replay", tmp_path / "a.png", "-o", tmp_path / "b.png", *parts)]
    assert app.main(again) == 0
    assert read_recipe(tmp_path / "b.png").model.weights == read_recipe(tmp_path / "a.png").model.weights
    assert app.main(again[:-2]) == 2  # it needs the decoder again
