"""Sizes that models were trained at: the lists and the choice are diffusers', and so is the picture that is cut afterwards."""

from __future__ import annotations

import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma
from PIL import Image

from gen.cli import app as cli
from gen.generator import Generator
from gen.io.images import cut_to
from gen.models.buckets import TABLES, nearest
from gen.pipeline.png import read_recipe
from tests.gen import pipelines
from tests.gen.test_bridge_parity import CLOSE, PROMPT, STEPS, grid_of

THEIRS = {size: getattr(pipeline_pixart_alpha, f"ASPECT_RATIO_{size}_BIN") for size in (256, 512, 1024)}
THEIRS[2048] = pipeline_pixart_sigma.ASPECT_RATIO_2048_BIN


@pytest.mark.parametrize("table", TABLES)
def test_the_lists_are_the_published_ones(table):
    assert set(TABLES[table]) == {(int(height), int(width)) for height, width in THEIRS[table].values()}
    for height in range(100, 2200, 97):
        for width in range(100, 2200, 61):
            expected = PixArtImageProcessor.classify_height_width_bin(height, width, THEIRS[table])
            assert nearest(height, width, table) == expected, (height, width)


@pytest.mark.parametrize("size", [(40, 24), (30, 50), (13, 64), (32, 32)])
def test_cutting_is_diffusers(size):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = PixArtImageProcessor.resize_and_crop_tensor(images, size[1], size[0])
    assert torch.equal(cut_to(images, size), expected) and expected.shape == (2, 3, *size)


@pytest.fixture(scope="module")
def sized(tmp_path_factory):
    """PixArt at a sample size of 32: 256 pixels with a real autoencoder, 64 here, so our list is told to be 256's."""
    pipeline = pipelines.pixart()
    network = pipelines.transformer(
        "PixArtTransformer2DModel", sample_size=32, num_attention_heads=3, out_channels=8, cross_attention_dim=24,
        caption_channels=16, norm_type="ada_norm_single", patch_size=8,
    )  # fmt: skip
    pipeline.register_modules(transformer=network)
    pipeline.set_progress_bar_config(disable=True)
    folder = pipelines.save(pipeline, tmp_path_factory.mktemp("bins") / "pixart")
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    assert generator.config.size_bins is None  # 64 pixels are not in a list
    config = generator.config.model_copy(update={"size_bins": 256})
    defaults = config.defaults.model_copy(update={"use_resolution_binning": True})
    generator.config = config.model_copy(update={"defaults": defaults})
    return pipeline, generator


def test_a_picture_of_any_size(sized):
    """150 x 100 is made at 208 x 304 / ... of the list, then cut, as the pipeline does; without the switch it is refused."""
    pipeline, generator = sized
    pipeline.scheduler.set_timesteps(STEPS)
    grid = grid_of(pipeline.scheduler, generator.denoiser.path)
    made = generator(PROMPT, height=150, width=101, schedule=grid, guidance_scale=3.0, num_inference_steps=STEPS,
                     seed=1, output_type="pt", progress=False)  # fmt: skip
    recipe = made.recipes[0]
    assert made.images.shape == (1, 3, 150, 101) and recipe.made_at == nearest(150, 101, 256) == (304, 208)
    from samplers.noise import normal

    x = normal([1], (4, 152, 104), "latents")
    reference = pipeline(
        [PROMPT], latents=x * grid[0].sigma, height=150, width=101, guidance_scale=3.0, num_inference_steps=STEPS,
        output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(made.images, reference, **CLOSE)
    options = {"seed": 1, "num_inference_steps": 1, "guidance_scale": 1.0, "progress": False}
    again = generator(PROMPT, height=150, width=101, output_type="pt", **options)
    assert torch.equal(generator.replay(again.recipes[0], output_type="pt", progress=False).images, again.images)
    with pytest.raises(ValueError, match="height is 150, which is not a multiple of 16"):
        generator(PROMPT, height=150, width=101, use_resolution_binning=False, **options)
    plain = generator(PROMPT, height=304, width=208, output_type="pt", **options)
    assert plain.recipes[0].made_at is None and plain.images.shape == (1, 3, 304, 208)
    red = Image.new("RGB", (60, 60), "red")
    picture = generator(PROMPT, height=150, width=101, image=red, strength=1.0, **options).images[0]
    assert picture.size == (101, 150)


def test_the_switch_on_models_without_a_list(tiny, sized, tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"no list of sizes that it was trained at; leave use_resolution_binning \(--bins\) out"
    ):
        tiny("a cat", use_resolution_binning=True, progress=False)
    with pytest.raises(ValueError, match="use_resolution_binning is 'yes'; give True or False"):
        tiny("a cat", use_resolution_binning="yes", progress=False)
    _, generator = sized
    folder = generator.save_pretrained(tmp_path / "sized")
    picture = tmp_path / "a.png"
    arguments = [
        "image",
        "a cat",
        "--model",
        str(folder),
        "--height",
        "150",
        "--width",
        "101",
        "--steps",
        "1",
        "--device",
        "cpu",
    ]
    assert cli.main([*arguments, "--seed", "1", "-q", "-o", str(picture)]) == 0
    assert Image.open(picture).size == (101, 150) and read_recipe(picture).made_at == (304, 208)
    assert cli.main([*arguments, "--no-bins", "-q", "-o", str(picture)]) == 2
    assert "not a multiple of 16" in capsys.readouterr().err
