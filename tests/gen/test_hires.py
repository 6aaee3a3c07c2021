"""Two passes: each is the run that it says, one recipe makes both again, and windows where the picture is too large."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gen.calls.foreign import call_of_infotext
from gen.generator import Generator
from gen.io.images import resize
from gen.pipeline.infotext import from_infotext, to_infotext
from gen.pipeline.png import read_recipe, save_image
from gen.pipeline.work import work

CALL = {"num_inference_steps": 4, "progress": False, "seed": 3}


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


def by_hand(generator, **call):
    """Both passes as calls of their own: drawn, enlarged by Lanczos, and drawn on from the picture."""
    first = generator("a cat", **CALL).images[0]
    larger = first.resize((64, 64), Image.Resampling.LANCZOS)
    return generator("a cat", **{**CALL, "num_inference_steps": 8}, image=larger, strength=0.5, **call)


def test_without_windows_it_is_an_edit_of_the_enlarged_picture(tiny):
    """Four steps of eight at strength 0.5, as in the web UI."""
    made = tiny("a cat", hires=2, hires_window=0, hires_strength=0.5, **CALL)
    assert made.images[0].size == (64, 64)
    assert np.abs(pixels(made.images[0]) - pixels(by_hand(tiny, height=64, width=64).images[0])).max() <= 1
    assert made.recipes[0].nfe == 2 * (4 + 4)


def test_with_windows_it_is_an_upscale_of_the_picture(tiny):
    made = tiny("a cat", hires=2, hires_strength=0.5, **CALL)  # windows of 32 pixels: the model's own size
    first = tiny("a cat", **CALL).images[0]
    larger = first.resize((64, 64), Image.Resampling.LANCZOS)
    by_windows = tiny.upscale(larger, "a cat", scale=1, strength=0.5, **{**CALL, "num_inference_steps": 8}).images[0]
    assert np.abs(pixels(made.images[0]) - pixels(by_windows)).max() <= 1
    assert made.recipes[0].hires.window == 32


def test_latents_are_enlarged_themselves(tiny):
    made = tiny("a cat", hires=2, hires_upscaler="latent", hires_window=0, hires_strength=0.5, output_type="latent", **CALL)
    small = tiny("a cat", output_type="latent", **CALL).images
    assert made.images.shape == (1, 4, 16, 16) and small.shape == (1, 4, 8, 8)
    task = made_task(tiny, "latent")
    assert torch.equal(
        task.enlarged(tiny, small), torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    )
    picture = tiny("a cat", hires=2, hires_window=0, hires_strength=0.5, output_type="latent", **CALL).images
    assert not torch.allclose(made.images, picture, atol=1e-2)


def made_task(generator, upscaler):
    from gen.pipeline.settings import Sampling, make_settings
    from gen.tasks.hires.options import HiresKeywords

    keywords = HiresKeywords(2.0, 0.5, None, upscaler, 0)
    return make_settings(generator, Sampling(num_inference_steps=4), None, None, None, {"hires": keywords}).tasks["hires"]


def test_pictures_are_enlarged_by_lanczos(tiny):
    latents = tiny("a cat", output_type="latent", **CALL).images
    larger = resize(tiny.decode(latents), 64, 64)
    assert torch.allclose(
        made_task(tiny, "picture").enlarged(tiny, latents), tiny.autoencoder.encode(larger * 2 - 1), atol=1e-5
    )


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a", "dpmpp_sde", "dpm_adaptive"])
@pytest.mark.parametrize("window", [0, 32])
def test_one_recipe_makes_both_passes_again(tiny, tmp_path, sampler, window):
    call = {**CALL, "hires": 1.5, "hires_window": window, "hires_steps": 2, "sampler": sampler, "num_images_per_prompt": 2}
    made = tiny("a cat", **call, variation_seed=4)
    for number, (image, recipe) in enumerate(zip(made.images, made.recipes, strict=True)):
        assert (recipe.height, recipe.width, recipe.made_at) == (48, 48, (32, 32)) and image.size == (48, 48)
        path = save_image(image, tmp_path / f"{number}.png", recipe)
        assert tiny.replay(read_recipe(path), progress=False).images[0].tobytes() == image.tobytes()


def test_a_picture_does_not_depend_on_its_batch(tiny):
    call = {"num_inference_steps": 2, "progress": False, "hires": 2}
    together = tiny(["a cat", "a dog"], seeds=[3, 4], **call).images
    alone = [tiny(text, seed=seed, **call).images[0] for text, seed in (("a cat", 3), ("a dog", 4))]
    assert [one.tobytes() for one in together] == [one.tobytes() for one in alone]


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_stopped_run_is_made_again_as_it_was_stopped(tiny, stop):
    """In the first pass, at its end, and in the second."""
    done = []

    def callback(generator, step, t, kwargs):
        done.append(step)
        generator.interrupt = len(done) == stop
        return {}

    made = tiny("a cat", hires=2, callback_on_step_end=callback, **CALL)
    recipe = made.recipes[0]
    assert made.interrupted and recipe.stopped_at == stop and made.images[0].size == (64, 64)
    assert tiny.replay(recipe, progress=False).images[0].tobytes() == made.images[0].tobytes()


def test_prompts_that_change_on_the_way_change_in_both_passes(tiny):
    made = tiny("a [cat:dog:0.5]", hires=2, **CALL)
    assert tiny.replay(made.recipes[0], progress=False).images[0].tobytes() == made.images[0].tobytes()
    assert made.images[0].tobytes() != tiny("a cat", hires=2, **CALL).images[0].tobytes()


def test_the_parameters_text_says_it_as_hires_fix_does(tiny):
    recipe = tiny("a cat", hires=2, hires_strength=0.4, hires_steps=3, hires_upscaler="latent", **CALL).recipes[0]
    text = to_infotext(recipe)
    assert "Size: 32x32, Denoising strength: 0.4, Hires upscale: 2.0, Hires steps: 3, Hires upscaler: Latent" in text
    call, missing = call_of_infotext(from_infotext(text))
    wanted = {"hires": 2.0, "hires_strength": 0.4, "hires_steps": 3, "hires_upscaler": "latent", "width": 32, "height": 32}
    assert {name: call.arguments[name] for name in wanted} == wanted and not missing
    _, missing = call_of_infotext({"Prompt": "x", "Hires upscale": "2", "Hires upscaler": "4x_Ultra"})
    assert missing == ("the upscaler '4x_Ultra'",)


def test_the_work_of_a_recipe_counts_both_passes(tiny):
    one, whole, windows = (
        tiny("a cat", **CALL, **more).recipes[0] for more in ({}, {"hires": 2, "hires_window": 0}, {"hires": 2})
    )
    assert work(whole) == pytest.approx(work(one) * 5) and work(windows) > work(whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"hires": 0.5}, "hires is 0.5"),
        ({"hires": 1}, "enlarges nothing"),
        ({"hires": 9}, "hires is 9"),
        ({"hires_steps": 3}, "hires_steps was given without hires"),
        ({"hires": 2, "hires_strength": 0}, "hires_strength is 0"),
        ({"hires": 2, "hires_steps": 0}, "hires_steps is 0"),
        ({"hires": 2, "hires_steps": 1000}, "part of a schedule of 3334"),
        ({"hires": 2, "hires_upscaler": "latents"}, "did you mean 'latent'"),
        ({"hires": 2, "hires_window": 20}, "not a multiple of 8"),
        ({"hires": 2, "image": Image.new("RGB", (32, 32))}, "hires goes without image"),
        ({"hires": 2, "guide": "brightness"}, "hires goes without guide"),
        ({"hires": 8, "width": 4000, "height": 4000}, "megapixels"),
        ({"hires": 2, "schedule": "table", "schedule_options": {"values": [1.0, 0.5]}}, "any length"),
    ],
)
def test_what_cannot_be_is_a_sentence(tiny, call, message):
    with pytest.raises(ValueError, match=message):
        tiny("a cat", **{"progress": False, "num_inference_steps": None, **call})


def test_a_unet_sees_all_of_the_picture(bridged):
    _, generator = bridged("stable_diffusion")
    made = generator("a cat", hires=2, num_inference_steps=2, seed=1, progress=False)
    assert made.recipes[0].hires.window == 0
    assert made.images[0].size == tuple(
        2 * side for side in generator("a cat", num_inference_steps=1, progress=False).images[0].size
    )


def test_models_of_classes_and_of_pixels(class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    made = generator(class_labels=1, hires=2, num_inference_steps=2, seed=1, progress=False)
    assert made.images[0].size == (16, 16)
    assert generator.replay(made.recipes[0], progress=False).images[0].tobytes() == made.images[0].tobytes()


def test_a_size_that_the_networks_cannot_divide_is_said(tiny):
    with pytest.warns(UserWarning, match=r"hires=1.3 \(--hires 1.3\) makes 40 x 40, .*: 1.25 times as wide and 1.25 times"):
        made = tiny("a cat", hires=1.3, num_inference_steps=1, progress=False)
    assert made.images[0].size == (40, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny("a cat", hires=1.25, num_inference_steps=1, progress=False)


def test_the_command(tiny_model, tmp_path, monkeypatch, capsys):
    from gen.cli.app import main

    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny_model), "--device", "cpu"]
    assert main(["image", "a cat", "--seed", "5", "--steps", "2", "--hires", "2", "--hires-steps", "1", *model]) == 0
    assert capsys.readouterr().out.split() == ["a-cat-5.png"] and Image.open("a-cat-5.png").size == (64, 64)
    assert main(["replay", "a-cat-5.png", *model]) == 0
    assert "Identical to the last byte" in capsys.readouterr().err
