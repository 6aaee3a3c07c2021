"""Models that edit and whose prompts a language model reads: what diffusers' pipelines make of one picture or several."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image

from gen import cli
from gen.io.images import digest
from gen.models.prompt_reading import Reading, SeenPicture
from gen.nn.backbones.editing import sides_of
from gen.pipeline.png import read_recipe
from tests.gen import pipelines, pipelines_chat
from tests.gen.newer_families import CLOSE, FAMILIES, latents_for, ours, theirs
from tests.gen.test_bridge_editing import picture


@pytest.mark.parametrize(("name", "steps"), [("flux2", 4), ("flux2_klein", 4), ("flux2_klein", 20)])
def test_flux2_reads_pictures_of_any_shape(bridged, name, steps):
    """Beside the noise, in the order in which they are given; sides that are no multiples are cut."""
    row, (pipeline, generator) = FAMILIES[name], bridged(name)
    x, images = latents_for(generator, 1), [picture(96, 64), picture(66, 80)]
    found = ours(generator, x, num_inference_steps=steps, image=images)
    reference = theirs(row, pipeline, x, num_inference_steps=steps, image=lambda: images)
    torch.testing.assert_close(found, reference, **CLOSE)
    one = ours(generator, x, num_inference_steps=steps, image=images[0])
    torch.testing.assert_close(one, theirs(row, pipeline, x, num_inference_steps=steps, image=images[0]), **CLOSE)
    swapped = ours(generator, x, num_inference_steps=steps, image=images[::-1])
    assert (one - found).abs().max() > 1e-3 and (swapped - found).abs().max() > 3e-4


def test_an_edit_of_several_pictures_replays_with_the_same(bridged):
    _, generator = bridged("flux2_klein")
    options = {"output_type": "pt", "progress": False}
    images = [picture(48, 32), picture(32, 48)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = generator("a cat", image=images, seed=3, num_inference_steps=2, height=32, width=48, **options)
        assert made.images.shape[-2:] == (32, 48)
        recipe = made.recipes[0]
        assert torch.equal(generator.replay(recipe, image=images, **options).images, made.images)
        for others in (images[:1], images[::-1], [*images, images[0]]):
            with pytest.raises(ValueError, match="is not the one that the picture was made from"):
                generator.replay(recipe, image=others, **options)


def test_several_pictures_on_the_command_line(tmp_path, capsys):
    folder = pipelines.save(pipelines_chat.flux2_klein(distilled=True), tmp_path / "klein")
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, size in zip(pictures, ((96, 64), (64, 80)), strict=True):
        picture(*size).save(path)
    images = [word for path in pictures for word in ("--image", str(path))]
    made, again = tmp_path / "made.png", tmp_path / "again.png"
    options = ["--width", "64", "--height", "32", "--steps", "2", "--seed", "4", "--device", "cpu", "--dtype", "float32"]
    assert cli.main(["image", "a cat", "--model", str(folder), *images, *options, "-o", str(made)]) == 0
    assert len(read_recipe(made).start.others) == 1
    assert cli.main(["replay", str(made), "--model", str(folder), *images, "-o", str(again)]) == 0
    assert again.read_bytes() == made.read_bytes()
    assert cli.main(["replay", str(made), "--model", str(folder), *images[:2], "-o", str(tmp_path / "other.png")]) != 0
    assert "is not the one that the picture was made from" in capsys.readouterr().err


def test_more_pictures_than_a_model_reads_are_refused(bridged):
    _, generator = bridged("flux2_klein")
    with pytest.raises(
        ValueError, match="11 images were given, and the model 'flux2_klein' takes at most 10 pictures at a time"
    ):
        generator("a cat", image=[picture()] * 11, num_inference_steps=2)
    _, plain = bridged("sd3")
    with pytest.raises(ValueError, match="2 images were given, and the model 'sd3' takes one picture at a time; give fewer"):
        plain("a cat", image=[picture()] * 2, num_inference_steps=2)


@pytest.mark.parametrize("size", [(64, 64), (1024, 1024), (1600, 900), (1024, 1025), (2048, 1024)])
def test_flux2_reads_large_pictures_at_fewer_pixels(bridged, size):
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    _, generator = bridged("flux2_klein")
    image = Image.new("RGB", size)
    if size[0] * size[1] > 1024 * 1024:
        image = Flux2ImageProcessor._resize_to_target_area(image, 1024 * 1024)
    assert generator.network.picture_size(size[1], size[0]) == image.size[::-1]


PLUS = {"plus": True}
EDITORS = [({}, 1, 4), (PLUS, 2, 4), (PLUS, 2, 20), ({**PLUS, "zero_cond_t": True}, 1, 4)]


@pytest.mark.parametrize(("options", "count", "steps"), EDITORS, ids=["edit-4", "plus-4", "plus-20", "2511-4"])
def test_qwens_editors_see_what_they_edit(bridged, smaller, options, count, steps):
    """The language model sees the pictures beside the words, the network reads their latents."""
    pipeline, generator = bridged("qwen_edit", **options)
    smaller(generator)
    pipeline.processor = pipelines_chat.QwenProcessor(pipeline.tokenizer, pipeline.text_encoder.config.vision_config)
    x, images = latents_for(generator, 1), [picture(100, 60), picture(50, 60)][:count]
    given = images if count > 1 else images[0]
    row = FAMILIES["qwen_image"]
    call = {"num_inference_steps": steps, "prompt": "make it red"}
    for negative in ("", "blurry"):
        reference = theirs(row, pipeline, x, **call, image=lambda: given, negative_prompt=negative)
        found = generator(
            "make it red", latents=x, image=given, num_inference_steps=steps, negative_prompt=negative, height=32, width=32,
            output_type="pt", progress=False,
        ).images  # fmt: skip
        torch.testing.assert_close(found, reference, **CLOSE)
    plain = generator(
        "make it red", latents=x, num_inference_steps=steps, height=32, width=32, output_type="pt", progress=False
    )
    assert (plain.images - found).abs().max() > 1e-3


def test_qwens_editor_sees_each_picture_anew(bridged, smaller):
    """What was read with one picture is not taken for another, and a picture's word in a prompt is refused."""
    _, generator = bridged("qwen_edit")
    smaller(generator)
    reader = generator.text_encoder
    first, second = (SeenPicture(digest(one), one) for one in (torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)))
    readings = [Reading(pictures=(one,)) for one in (first, second)]
    one, other = (generator.encode_prompt(["red"], reading=reading).tokens for reading in readings)
    assert one.shape == other.shape and (one - other).abs().max() > 1e-4
    assert torch.equal(generator.encode_prompt(["red"], reading=readings[0]).tokens, one)
    weighted = reader.condition("(red:1.3)", reading=readings[0]).tokens
    assert int(((weighted - one).abs().amax(-1) > 0).sum()) == 3
    with pytest.raises(ValueError, match=r"The prompt holds .* which stands for a picture; leave it out"):
        reader.condition("a <|image_pad|>", reading=readings[0])


@pytest.mark.parametrize("ratio", [(100, 60), (512, 512), (37, 91), (2000, 300)])
def test_sizes_that_qwen_reads_are_diffusers(ratio):
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions

    for area in (384 * 384, 1024 * 1024):
        assert sides_of(area, ratio[1], ratio[0]) == calculate_dimensions(area, ratio[0] / ratio[1])[::-1]
