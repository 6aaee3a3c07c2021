"""Models that edit and whose prompts a language model reads: what diffusers' pipelines make of one picture or several."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image

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
