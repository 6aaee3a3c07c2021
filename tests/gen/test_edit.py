"""Image to image and inpainting through `Generator`: against the samplers' own functions, and what stays to the pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gen.edit import read_picture
from gen.recipe import Recipe, RecipeError, open_picture
from samplers.denoiser import Condition, Context
from samplers.editing import Inpaint, image_to_image
from samplers.guidance import ClassifierFree
from samplers.noise import normal
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.gen.test_recipe import HOSTILE


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(array)


@pytest.fixture(scope="module")
def mask() -> Image.Image:
    """The left 13 columns are to be made."""
    array = np.zeros((32, 32), np.uint8)
    array[:, :13] = 255
    return Image.fromarray(array)


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 255


def setup(tiny, picture):
    tokens, mask = tiny.text_encoder.encode(["a cat"])
    latents = tiny.autoencoder.encode(tensor(picture) * 2 - 1)
    return (
        Condition(tokens=tokens, mask=mask),
        latents,
        normal([7], (4, 8, 8), "latents"),
        get_grid("uniform", RectifiedFlow(), 6),
    )


def test_image_to_image_is_the_samplers_own(tiny, picture):
    with torch.no_grad():
        condition, latents, eps, levels = setup(tiny, picture)
        field = ClassifierFree(tiny.denoiser, 3.0)
        expected = image_to_image(field, get_solver("dpmpp_2m"), latents, eps, levels, 0.5, condition, context=Context())
    made = tiny("a cat", seed=7, num_inference_steps=6, image=picture, strength=0.5, output_type="latent", progress=False)
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-6)
    assert made.recipes[0].nfe == 6 and made.recipes[0].num_inference_steps == 6  # 3 of 6 steps, two branches


def test_inpainting_is_the_samplers_own_and_keeps_pixels(tiny, picture, mask):
    with torch.no_grad():
        condition, latents, eps, levels = setup(tiny, picture)
        # 13 columns of pixels touch 4 of 8 columns of latents
        wanted = torch.zeros(1, 1, 8, 8).index_fill_(3, torch.arange(4), 1)
        field = Inpaint(ClassifierFree(tiny.denoiser, 3.0), latents, wanted, eps)
        x = levels[0].mix(latents, eps)
        expected = sample(field, get_solver("dpmpp_2m"), x, levels, condition, context=Context())
    call = {"seed": 7, "num_inference_steps": 6, "image": picture, "mask": mask, "progress": False}
    torch.testing.assert_close(tiny("a cat", output_type="latent", **call).images, expected, rtol=0, atol=1e-6)
    output = tiny("a cat", **call)
    before, after = np.array(picture), np.array(output.images[0])
    assert (before[:, 13:] == after[:, 13:]).all() and (before[:, :13] != after[:, :13]).mean() > 0.5
    assert output.recipes[0].start.strength == 1.0


def test_replay_needs_the_same_image_and_mask(tiny, picture, mask):
    made = tiny("a cat", seed=7, image=picture, mask=mask, output_type="pt", progress=False)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    again = tiny.replay(recipe, "pt", False, image=picture, mask=mask)
    assert torch.equal(again.images, made.images) and again.recipes[0] == recipe
    for given, message in (
        ({}, "made from an image, which is not in its recipe"),
        ({"image": picture}, "made from a mask"),
        ({"image": picture.rotate(90), "mask": mask}, "This image is not the one"),
        ({"image": picture, "mask": mask.rotate(90)}, "This mask is not the one"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny.replay(recipe, "pt", False, **given)
    plain = tiny("a cat", seed=7, progress=False).recipes[0]
    with pytest.raises(ValueError, match="made without an image"):
        tiny.replay(plain, "pt", False, image=picture)


def test_pixel_models_edit_too(pixel_model, picture, mask):
    from gen.generator import Generator

    generator = Generator.from_pretrained(pixel_model, device="cpu", dtype="float32")
    output = generator(seed=1, image=picture, mask=mask, output_type="pt", progress=False)
    small = torch.nn.functional.interpolate(tensor(picture), (8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(output.images[..., 4:], small[..., 4:], rtol=0, atol=1e-6)


def test_pictures_of_every_kind_are_read_alike(picture, tmp_path):
    picture.save(tmp_path / "p.png")
    for source in (picture, np.array(picture), tensor(picture)[0], tmp_path / "p.png", str(tmp_path / "p.png")):
        assert torch.equal(read_picture("image", source, "RGB"), tensor(picture))
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (read_picture("image", clear, "RGB") == 1).all()  # what is transparent is white


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_turned_as_their_exif_says(orientation, tmp_path):
    """The top left corner, red, is where a viewer shows it: against what each value of the tag means."""
    array = np.full((16, 24, 3), 255, np.uint8)
    array[:8, :8] = (255, 0, 0)
    told = Image.Exif()
    told[0x0112] = orientation
    Image.fromarray(array).save(tmp_path / "a.jpg", exif=told, quality=95, subsampling=0)
    seen = read_picture("image", tmp_path / "a.jpg", "RGB")[0, 1] < 0.5  # red has no green
    turned = np.rot90(array[..., 1] == 0, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])  # 6: clockwise
    assert seen.shape == turned.shape and (seen.numpy() == turned).mean() > 0.98
    with Image.open(tmp_path / "a.jpg") as opened:
        assert torch.equal(read_picture("image", opened, "RGB")[0, 1] < 0.5, seen)


@pytest.mark.parametrize("tail", [b"", b"no tiff", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02"])
def test_damaged_exif_turns_nothing(tail, tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + tail)
    assert read_picture("image", tmp_path / "a.jpg", "RGB").shape == (1, 3, 4, 6)


def test_other_sizes_are_cut_about_the_middle(tiny):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = 200  # the middle square
    output = tiny("a cat", seed=1, image=wide, strength=0.25, output_type="latent", progress=False)
    square = tiny(
        "a cat", seed=1, image=np.full((32, 32, 3), 200, np.uint8), strength=0.25, output_type="latent", progress=False
    )
    torch.testing.assert_close(output.images, square.images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"mask": np.zeros((4, 4), np.uint8)}, "mask was given without an image"),
        ({"strength": 0.5}, "strength was given without an image"),
        ({"image": "missing.png"}, r"image: missing.png cannot be opened \(No such file"),
        ({"image": __file__}, r"test_edit.py cannot be opened \(it is not a PNG, JPEG or WEBP"),
        ({"image": 3}, "image is int; give a file name"),
        ({"image": np.zeros((4, 4, 3))}, "give bytes of shape"),
        ({"image": torch.full((3, 8, 8), 2.0)}, "numbers from 0 to 1"),
        ({"image": torch.full((3, 8, 8), float("nan"))}, "numbers from 0 to 1"),
        ({"image": torch.zeros(2, 3, 8, 8)}, "give one picture"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "strength": 1.5}, "strength is 1.5; give a number from 0 to 1"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "strength": 0.1}, "leaves no step of 4"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "mask": np.zeros((8, 8), np.uint8), "guidance": "cfg++"}, "cfg\\+\\+ moves"),
    ],
)
def test_refusals(tiny, asked, message):
    with pytest.raises(ValueError, match=message):
        tiny("a cat", seed=1, progress=False, **asked)


@pytest.mark.parametrize("kind", sorted(HOSTILE.keys() - {"text bomb"}))  # its pixels are read, not its text
def test_hostile_pictures_are_one_sentence(tmp_path, kind):
    """Also what Pillow raises an error for where it only warned for smaller ones: 900 megapixels."""
    path = tmp_path / "a.png"
    path.write_bytes(HOSTILE[kind])
    with pytest.raises(ValueError, match=r"^mask: .*a\.png") as caught:
        read_picture("mask", path, "L")
    assert type(caught.value) is ValueError


def test_only_the_formats_asked_for_are_read(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), "red").save(path, "JPEG")
    assert read_picture("image", path, "RGB").shape == (1, 3, 4, 4)
    with pytest.raises(RecipeError, match="it is not a PNG, or damaged"):
        open_picture(path)
    (tmp_path / "cut.jpg").write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"image: .*cut\.jpg cannot be opened"):
        read_picture("image", tmp_path / "cut.jpg", "RGB")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    with pytest.raises(ValueError, match="not a PNG, JPEG or WEBP"):
        read_picture("image", tmp_path / "a.bmp", "RGB")
