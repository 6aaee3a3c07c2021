"""Models that edit: what they make of a picture, or of a picture and a mask, is what diffusers' pipelines make of it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from gen.generator import Generator
from gen.io.images import read_picture, resize
from gen.nn.backbones import editing
from tests.gen.test_bridge_parity import CLOSE, NEGATIVE, PROMPT, noise, pack

SIZE = 32


def picture(width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask() -> Image.Image:
    array = np.zeros((SIZE, SIZE), np.uint8)
    array[4:20, 10:] = 255
    return Image.fromarray(array)


def theirs(pipeline, x: torch.Tensor, **call) -> torch.Tensor:
    area = {"max_area": SIZE * SIZE} if "Kontext" in type(pipeline).__name__ else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call = {"height": SIZE, "width": SIZE, "output_type": "pt", **area, **call}
        return pipeline(prompt=[PROMPT] * len(x), latents=pack(x), **call).images


def ours(generator, x: torch.Tensor | None, **call) -> torch.Tensor:
    call = {"height": SIZE, "width": SIZE, "output_type": "pt", "progress": False, **call}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generator([PROMPT] * (1 if x is None else len(x)), latents=x, **call).images


def test_kontexts_sizes_are_those_of_diffusers():
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    assert list(editing.SIZES) == PREFERRED_KONTEXT_RESOLUTIONS


@pytest.mark.parametrize("steps", [4, 20])
def test_kontext_edits_as_its_pipeline_does(bridged, small, steps):
    """A picture of another shape and size than what is made of it; with a negative prompt by plain guidance besides."""
    pipeline, generator = bridged("flux_kontext")
    x, wide = noise(generator, 2), picture(90, 50)
    plain = ours(generator, x, image=wide, num_inference_steps=steps)
    reference = theirs(pipeline, x, image=wide, num_inference_steps=steps)
    torch.testing.assert_close(plain, reference, **CLOSE)
    guided = ours(
        generator, x, image=wide, num_inference_steps=steps, guidance="cfg", guidance_scale=2.0, negative_prompt=NEGATIVE
    )
    reference = theirs(pipeline, x, image=wide, num_inference_steps=steps, true_cfg_scale=2.0, negative_prompt=[NEGATIVE] * 2)
    torch.testing.assert_close(guided, reference, **CLOSE)
    without = ours(generator, x, num_inference_steps=steps)
    torch.testing.assert_close(without, theirs(pipeline, x, num_inference_steps=steps), **CLOSE)
    assert min((plain - guided).abs().max(), (plain - without).abs().max()) > 1e-3


def test_kontext_with_a_strength_begins_with_the_picture_too(bridged, small):
    """Against diffusers' Kontext pipeline for inpainting, whose mask opens everything."""
    from diffusers import FluxKontextInpaintPipeline

    pipeline, generator = bridged("flux_kontext")
    inpaint = FluxKontextInpaintPipeline(**{k: v for k, v in pipeline.components.items() if v is not None})
    inpaint.set_progress_bar_config(disable=True)
    image, white = picture(), Image.new("L", (SIZE, SIZE), 255)
    x, call = noise(generator, 1), {"image": image, "strength": 0.5, "num_inference_steps": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = inpaint(
            prompt=[PROMPT], mask_image=white, height=SIZE, width=SIZE, output_type="pt", max_area=SIZE * SIZE,
            generator=torch.Generator().manual_seed(5), **call,
        ).images  # fmt: skip
    found = ours(generator, x, **call)
    torch.testing.assert_close(found, reference, **CLOSE)
    assert (found - ours(generator, x, image=image, num_inference_steps=4)).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [4, 20])
def test_fill_makes_what_its_pipeline_makes(bridged, steps):
    """Within the mask; around it our picture is the given one, to the pixel."""
    pipeline, generator = bridged("flux_fill")
    x, image, hole = noise(generator, 2), picture(), mask()
    found = ours(generator, x, image=image, mask=hole, num_inference_steps=steps)
    reference = theirs(pipeline, x, image=image, mask_image=hole, num_inference_steps=steps)
    opened = read_picture("mask", hole, "L").expand_as(found) > 0
    torch.testing.assert_close(found[opened], reference[opened], **CLOSE)
    kept = read_picture("image", image, "RGB").expand_as(found)
    assert torch.equal(found[~opened], kept[~opened])
    other = ours(generator, x, image=image, mask=Image.new("L", (SIZE, SIZE), 255), num_inference_steps=steps)
    assert found.std() > 0.02 and (found - other)[opened].abs().max() > 1e-3


def test_an_edit_replays(bridged, small):
    _, generator = bridged("flux_kontext")
    made = generator(PROMPT, image=picture(), seed=3, num_inference_steps=2, output_type="pt", progress=False)
    recipe = made.recipes[0]
    assert recipe.start is not None and recipe.start.strength is None
    again = generator.replay(recipe, image=picture(), output_type="pt", progress=False)
    assert torch.equal(again.images, made.images)
    with pytest.raises(ValueError, match=r"made from an image, which is not in its recipe"):
        generator.replay(recipe, progress=False)


def test_what_a_model_that_edits_cannot_do_is_a_sentence(bridged, small):
    _, fill = bridged("flux_fill")
    with pytest.raises(ValueError, match=r"give mask too \(white is made anew\)"):
        ours(fill, None, image=picture(), num_inference_steps=1)
    with pytest.raises(ValueError, match="fills in what a mask opens; give it a picture as image and the mask as mask"):
        ours(fill, None, num_inference_steps=1)
    _, kontext = bridged("flux_kontext")
    regions = [{"prompt": "a dog", "box": [0, 0, 0.5, 1]}, {"prompt": "a car", "box": [0.5, 0, 0.5, 1]}]
    two = {"width": SIZE, "height": SIZE, "regions": regions}
    with pytest.raises(ValueError, match="reads the picture that it edits, which goes without layout; leave one of them out"):
        ours(kontext, None, layout=two, image=picture(), guidance="cfg", num_inference_steps=1)


def test_a_network_of_other_channels_fills_nothing(bridged, tmp_path):
    _, generator = bridged("flux_kontext")
    folder = generator.save_pretrained(tmp_path / "plain")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "FluxFillPipeline"}))
    with pytest.raises(ValueError, match="FLUX Fill: its network takes 16 channels, not 48: those of noise, picture and mask"):
        Generator.from_pretrained(folder, device="cpu", dtype="float32")


def test_resizing_is_that_of_diffusers():
    from diffusers.image_processor import VaeImageProcessor

    processor, image = VaeImageProcessor(vae_scale_factor=2), picture(90, 50)
    reference = processor.preprocess(processor.resize(image, 24, 40), 24, 40)
    torch.testing.assert_close(resize(read_picture("image", image, "RGB"), 24, 40) * 2 - 1, reference)


def test_fill_paints_around_a_picture(bridged):
    """Windows of a canvas see their own part of the picture and the mask; what is given stays, to the pixel."""
    _, generator = bridged("flux_fill")
    image, call = picture(), {"num_inference_steps": 2, "seed": 3, "output_type": "pt", "progress": False}
    windows = {"window": (SIZE, SIZE), "stride": (SIZE, SIZE // 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wide = generator.outpaint(image, "a cat", right=SIZE, **windows, **call).images
        other = generator.outpaint(picture().rotate(90), "a cat", right=SIZE, **windows, **call).images
    assert wide.shape == (1, 3, SIZE, 2 * SIZE)
    assert torch.equal(wide[..., :SIZE], read_picture("image", image, "RGB"))
    assert wide[..., SIZE:].std() > 0.01 and (wide - other)[..., SIZE:].abs().max() > 1e-3


@pytest.mark.parametrize("name", ["flux_kontext", "flux_fill"])
def test_caches_and_guidance_go_on_top_of_edits(bridged, small, name):
    _, generator = bridged(name)
    x, hole = noise(generator, 1), {"mask": mask()} if name == "flux_fill" else {}
    call = {"image": picture(), "num_inference_steps": 4, **hole}
    plain = ours(generator, x, **call)
    never = ours(generator, x, cache="first_block", cache_options={"threshold": 1e-9}, **call)
    assert torch.equal(never, plain)
    for changes in ({"cache": "taylor", "cache_options": {"stride": 2}}, {"guidance": "apg", "guidance_scale": 3.0}):
        made = ours(generator, x, **changes, **call)
        assert made.isfinite().all() and (made - plain).abs().max() > 1e-5
